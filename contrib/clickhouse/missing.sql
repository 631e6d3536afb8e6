-- How many lines were written but did not arrive. The last line of each run, its summary, says how many
-- lines it has written, and how many events it has lost before that (`lost_before`).
SELECT
    sumIf(emitted, event = 'summary') AS written,
    countIf(event != 'summary') AS came,
    written - came AS missing,
    sumIf(lost, event = 'summary') AS lost_before
FROM tcp_events FINAL;
