"""Jobs: records and transitions in Redis, the ledger of their units, queues, and what ends or revives them."""
