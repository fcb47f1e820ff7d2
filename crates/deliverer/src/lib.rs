//! It goes out: filter, view, render, sign, attempt, verdict, settle.
