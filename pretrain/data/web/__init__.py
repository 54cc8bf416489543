"""Web archives to shards: datatrove's extraction, filters and deduplication, on its executors, and our shards at the
end."""
