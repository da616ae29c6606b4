//! Dockerfile to image.
