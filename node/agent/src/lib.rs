//! The order of work on a machine; one folder per resource: observe, diff, apply, status.
