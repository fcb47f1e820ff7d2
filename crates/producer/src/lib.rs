//! It comes in: the publishing library and the HTTP intake.
