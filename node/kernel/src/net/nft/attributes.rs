//! Numbers of attributes (`NFTA_*` of `linux/netfilter/nf_tables.h`), by what they belong to.

/// An entry of any list, and the nested data of one.
pub const ENTRY: u16 = 1;

/// `NFTA_TABLE_*`.
pub mod table {
    pub const NAME: u16 = 1;
    pub const FLAGS: u16 = 2;
    pub const USER_DATA: u16 = 6;
}

/// `NFTA_CHAIN_*`.
pub mod chain {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 3;
    pub const HOOK: u16 = 4;
    pub const POLICY: u16 = 5;
    pub const TYPE: u16 = 7;
    pub const USER_DATA: u16 = 12;
}

/// `NFTA_HOOK_*`.
pub mod hook {
    pub const NUMBER: u16 = 1;
    pub const PRIORITY: u16 = 2;
}

/// `NFTA_RULE_*`.
pub mod rule {
    pub const TABLE: u16 = 1;
    pub const CHAIN: u16 = 2;
    pub const HANDLE: u16 = 3;
    pub const EXPRESSIONS: u16 = 4;
    pub const USER_DATA: u16 = 7;
}

/// `NFTA_SET_*`.
pub mod set {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const KEY_TYPE: u16 = 4;
    pub const KEY_LENGTH: u16 = 5;
    pub const DATA_TYPE: u16 = 6;
    pub const DATA_LENGTH: u16 = 7;
    pub const ID: u16 = 10;
    pub const TIMEOUT: u16 = 11;
    pub const USER_DATA: u16 = 13;
}

/// `NFTA_SET_ELEM_LIST_*`.
pub mod list {
    pub const TABLE: u16 = 1;
    pub const SET: u16 = 2;
    pub const ELEMENTS: u16 = 3;
    pub const SET_ID: u16 = 4;
}

/// `NFTA_SET_ELEM_*`.
pub mod element {
    pub const KEY: u16 = 1;
    pub const DATA: u16 = 2;
    pub const USER_DATA: u16 = 6;
}

/// `NFTA_DATA_*` and `NFTA_VERDICT_*`.
pub mod data {
    pub const VALUE: u16 = 1;
    pub const VERDICT: u16 = 2;
    pub const CODE: u16 = 1;
    pub const CHAIN: u16 = 2;
}

/// `NFTA_EXPR_*`.
pub mod expression {
    pub const NAME: u16 = 1;
    pub const DATA: u16 = 2;
}

/// `NFTA_PAYLOAD_*`.
pub mod payload {
    pub const TO: u16 = 1;
    pub const BASE: u16 = 2;
    pub const OFFSET: u16 = 3;
    pub const LENGTH: u16 = 4;
}

/// `NFTA_META_*`.
pub mod meta {
    pub const TO: u16 = 1;
    pub const KEY: u16 = 2;
    pub const FROM: u16 = 3;
}

/// `NFTA_FIB_*`.
pub mod fib {
    pub const TO: u16 = 1;
    pub const RESULT: u16 = 2;
    pub const FLAGS: u16 = 3;
}

/// `NFTA_CT_*`.
pub mod ct {
    pub const TO: u16 = 1;
    pub const KEY: u16 = 2;
}

/// `NFTA_CMP_*`.
pub mod cmp {
    pub const FROM: u16 = 1;
    pub const OPERATOR: u16 = 2;
    pub const DATA: u16 = 3;
}

/// `NFTA_BITWISE_*`.
pub mod bitwise {
    pub const FROM: u16 = 1;
    pub const TO: u16 = 2;
    pub const LENGTH: u16 = 3;
    pub const MASK: u16 = 4;
    pub const XOR: u16 = 5;
}

/// `NFTA_LOOKUP_*`.
pub mod lookup {
    pub const SET: u16 = 1;
    pub const FROM: u16 = 2;
    pub const TO: u16 = 3;
    pub const SET_ID: u16 = 4;
}

/// `NFTA_NG_*`.
pub mod numgen {
    pub const TO: u16 = 1;
    pub const MODULUS: u16 = 2;
    pub const TYPE: u16 = 3;
    pub const OFFSET: u16 = 4;
}

/// `NFTA_IMMEDIATE_*`.
pub mod immediate {
    pub const TO: u16 = 1;
    pub const DATA: u16 = 2;
}

/// `NFTA_DYNSET_*`.
pub mod dynset {
    pub const SET: u16 = 1;
    pub const OPERATION: u16 = 3;
    pub const KEY: u16 = 4;
}

/// `NFTA_NAT_*`.
pub mod nat {
    pub const TYPE: u16 = 1;
    pub const FAMILY: u16 = 2;
    pub const ADDRESS: u16 = 3;
    pub const PORT: u16 = 5;
}

/// `NFTA_REJECT_*`.
pub mod reject {
    pub const TYPE: u16 = 1;
    pub const CODE: u16 = 2;
}
