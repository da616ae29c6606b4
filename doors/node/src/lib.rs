//! Serves each machine its own intents; carries live streams.
