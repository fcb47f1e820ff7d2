//! U01 to U49.
