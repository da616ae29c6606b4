//! Services and names compiled into rules with owners; pure.
