//! The targets of `make fuzz`, by name. What must hold stands in `laws`.

mod laws;

/// Judges bytes by the law of a target; panics when it does not hold.
pub fn judge(target: &str, data: &[u8]) {
    for (name, law) in laws::TARGETS {
        if name == target {
            law(data);
        }
    }
}
