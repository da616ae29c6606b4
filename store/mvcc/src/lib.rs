//! Revisions, ranges, transactions, leases, watch history; pure.
