-- Lines that a run has written and that never came, from its summary: the last line of each run. Rows that
-- tcpinspect itself could not write are in `lost`.
SELECT
    sumIf(emitted, event = 'summary') AS written,
    countIf(event != 'summary') AS came,
    written - came AS missing,
    sumIf(lost, event = 'summary') AS lost_before
FROM tcp_events FINAL;
