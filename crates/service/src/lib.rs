//! How a process lives: settings, telemetry, ops HTTP, shutdown. Knows no event and no broker.
