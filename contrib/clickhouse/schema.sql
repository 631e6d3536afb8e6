-- The events of connect-trace, in ClickHouse. A line that came twice, because the collector was restarted
-- before it had acknowledged the line, becomes one row when parts are merged; FINAL asks for that at once.
-- Load a file:   clickhouse-client --query 'INSERT INTO tcp_events FORMAT JSONEachRow' < file.jsonl
CREATE TABLE IF NOT EXISTS tcp_events
(
    ts DateTime64(9, 'UTC') CODEC(Delta, ZSTD),
    event LowCardinality(String),
    comm LowCardinality(Nullable(String)),
    pid Nullable(UInt32),
    tid Nullable(UInt32),
    uid Nullable(UInt32),
    saddr String,
    sport UInt16,
    daddr String,
    dport UInt16,
    error LowCardinality(Nullable(String)),
    latency_us Nullable(UInt64),
    netns Nullable(UInt32),
    container LowCardinality(Nullable(String)),
    command LowCardinality(String),
    matched UInt64,
    emitted UInt64,
    lost UInt64,
    suppressed UInt64
)
ENGINE = ReplacingMergeTree
PARTITION BY toDate(ts)
ORDER BY (ts, event, saddr, sport, daddr, dport)
TTL toDate(ts) + INTERVAL 30 DAY;
