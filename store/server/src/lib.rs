//! Runs the log and mvcc as one durable member; membership comes with replication.
