"""The durable record, in SQLite by default and in PostgreSQL for a fleet: sessions, payments, the journal's cursor,
aggregates and their versions, tariffs, statements, receipts, events, and the intents of whoever pays. Socket and cable
use the same schema."""
