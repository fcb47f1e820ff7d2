//! R01 to R40.
