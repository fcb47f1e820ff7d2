//! How a delivery is said: the dialects, their names, views, bodies and headers. Pure.
