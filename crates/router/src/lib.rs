//! Who wants it: the match table, routing, fan-out.
