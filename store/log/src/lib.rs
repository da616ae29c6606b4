//! Write-ahead log, checkpoints and snapshots over a disk trait.
