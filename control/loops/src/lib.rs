//! The reconcile driver: signal and period, rate, status; calls the planners.
