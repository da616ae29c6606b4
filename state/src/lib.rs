//! Typed objects over kv: optimistic writes, admission, access rules, cause stamp, watch cache.
