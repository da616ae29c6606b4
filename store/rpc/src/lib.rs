//! etcd's messages and services: generated from our own protos, without protoc.
