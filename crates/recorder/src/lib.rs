//! It is remembered: drains dead letters and quarantine into the store.
