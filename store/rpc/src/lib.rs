//! etcd's messages and services: generated from our own protos, without protoc.
//!
//! One module for each proto package; the comments of the protos are their documentation. Fields of
//! type `bytes` are [`bytes::Bytes`]: a decoded message shares the buffer that it came in.

// The generated code documents messages and fields, not the modules of oneofs and the like.
#![allow(missing_docs, clippy::doc_markdown)]

mod raw;

pub use raw::Raw;

/// What etcd stores: keys and events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Users, roles and permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// The services KV, Watch, Lease, Cluster, Maintenance and Auth.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// The election service.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// The lock service.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// The health service of gRPC.
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// All of the above as an encoded `google.protobuf.FileDescriptorSet`, for reflection and JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.descriptors"));
