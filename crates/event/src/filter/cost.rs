//! What evaluating an expression can cost at most, told before it is evaluated.
//!
//! The evaluator has no fuel, so this walks the expression instead of running it, with bounds in
//! place of values: how large each value can be, how many elements it can have. An expression may
//! be short and still cost much: `[a].map(x, x + x).map(x, x + x)…` doubles with every step, and
//! `list.exists(a, list.exists(b, …))` squares.
//!
//! Every bound is a polynomial without negative terms in the sizes of what it reads. So the cost of
//! a loop over elements of sizes s1 … sn is at most n times the cost at size zero, plus what the
//! cost grows by when one element has all the size there is. That keeps a loop over a large list
//! linear where a bound per element times their number would square.

use cel::{
    IdedExpr,
    common::{
        ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators},
        types::{CelBytes, CelList, CelMap, CelMapKey, CelString},
        value::Val,
    },
};

use super::expression::EVENT;

/// What one evaluation may cost: some milliseconds of an optimised build at worst. A unit is one or
/// two nanoseconds.
const BUDGET: f64 = 2_500_000.0;
/// What it costs to evaluate one node, whatever its operands.
const NODE: f64 = 20.0;
/// What it costs to go round a loop once, beside its body.
const ROUND: f64 = 60.0;
/// What a value costs to copy beside its bytes.
const VALUE: f64 = 8.0;

/// Whether the expression stays within the budget on values of these sizes.
pub(super) fn fits(root: &IdedExpr, sizes: &Sizes<'_>) -> bool {
    let mut bounds = Bounds {
        sizes,
        bound: Vec::new(),
    };
    bounds.of(root).cost <= BUDGET
}

/// How large a value can be.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    /// What copying or comparing it costs.
    weight: f64,
    /// How many elements it has.
    width: f64,
    /// How many values it holds at all depths: a bound for the elements of its elements together.
    nodes: f64,
}

impl Size {
    const SCALAR: Self = Self {
        weight: VALUE,
        width: 0.0,
        nodes: 0.0,
    };

    fn plus(self, other: Self) -> Self {
        Self {
            weight: self.weight + other.weight,
            width: self.width + other.width,
            nodes: self.nodes + other.nodes,
        }
    }
}

/// The sizes of what `event` holds.
#[derive(Debug)]
pub(super) struct Sizes<'v> {
    whole: Size,
    /// To measure what a path leads to, where the rough bound is too much.
    value: Option<&'v dyn Val>,
}

impl<'v> Sizes<'v> {
    /// A small event: what costs too much here costs too much always.
    pub(super) fn small() -> Self {
        Self {
            whole: Size {
                weight: 1024.0,
                width: 4.0,
                nodes: 32.0,
            },
            value: None,
        }
    }

    /// Every part of the event is taken to be as large as the whole.
    pub(super) fn rough(value: &'v dyn Val) -> Self {
        let mut whole = Size::default();
        let widest = measure(value, &mut whole);
        whole.width = widest;
        Self { whole, value: None }
    }

    /// What a path leads to is measured.
    pub(super) fn exact(value: &'v dyn Val) -> Self {
        Self {
            value: Some(value),
            ..Self::rough(value)
        }
    }

    fn of_path(&self, path: &[&str]) -> Size {
        let Some(mut value) = self.value else {
            return self.whole;
        };
        for field in path {
            let inner = value
                .downcast_ref::<CelMap<'_>>()
                .and_then(|map| map.inner().get(&CelMapKey::from((*field).to_owned())));
            match inner {
                Some(inner) => value = inner.as_ref(),
                // Nothing is there: the evaluation ends here.
                None => return Size::SCALAR,
            }
        }
        let mut size = Size::default();
        measure(value, &mut size);
        size.width = width(value);
        size
    }
}

fn width(value: &dyn Val) -> f64 {
    let len = if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        list.inner().len()
    } else if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        map.inner().len()
    } else {
        0
    };
    len as f64
}

/// Adds a value's weight and nodes to `size`, and gives the widest list or map in it. The depth is
/// that of JSON we have admitted.
fn measure(value: &dyn Val, size: &mut Size) -> f64 {
    size.weight += VALUE;
    size.nodes += 1.0;
    let mut widest = width(value);
    if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        for element in list.inner() {
            widest = widest.max(measure(element.as_ref(), size));
        }
    } else if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        for (key, element) in map.inner() {
            if let CelMapKey::String(key) = key {
                size.weight += VALUE + key.inner().len() as f64;
            }
            widest = widest.max(measure(element.as_ref(), size));
        }
    } else if let Some(text) = value.downcast_ref::<CelString<'_>>() {
        size.weight += text.inner().len() as f64;
    } else if let Some(bytes) = value.downcast_ref::<CelBytes<'_>>() {
        size.weight += bytes.inner().len() as f64;
    }
    widest
}

/// What a node can cost with everything below it, and how large its value can be.
#[derive(Debug, Clone, Copy)]
struct Bound {
    cost: f64,
    size: Size,
    /// The value is one that exists already: looking into it copies nothing.
    borrowed: bool,
}

struct Bounds<'s, 'v> {
    sizes: &'s Sizes<'v>,
    /// The variables of the loops we are in, innermost last.
    bound: Vec<(String, Size)>,
}

impl Bounds<'_, '_> {
    fn of(&mut self, node: &IdedExpr) -> Bound {
        match &node.expr {
            Expr::Literal(literal) => {
                let bytes = match literal {
                    LiteralValue::String(text) => text.inner().len(),
                    LiteralValue::Bytes(bytes) => bytes.inner().len(),
                    _ => 0,
                };
                let weight = VALUE + bytes as f64;
                Bound {
                    cost: NODE,
                    size: Size {
                        weight,
                        ..Size::SCALAR
                    },
                    borrowed: true,
                }
            }
            Expr::Ident(name) => Bound {
                cost: NODE,
                size: self.variable(name, &[]),
                borrowed: true,
            },
            Expr::Select(_) => self.select(node),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                let width = list.elements.len() as f64;
                self.container(list.elements.iter(), width)
            }
            Expr::Map(map) => {
                let entries = map.entries.iter().filter_map(|entry| match &entry.expr {
                    EntryExpr::MapEntry(entry) => Some([&entry.key, &entry.value]),
                    EntryExpr::StructField(_) => None,
                });
                self.container(entries.flatten(), map.entries.len() as f64)
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(_) | Expr::Unspecified => Bound {
                cost: f64::INFINITY,
                size: Size::SCALAR,
                borrowed: false,
            },
        }
    }

    fn variable(&self, name: &str, path: &[&str]) -> Size {
        match self.bound.iter().rev().find(|(bound, _)| bound == name) {
            // A part of it is no larger than the whole.
            Some((_, size)) => *size,
            None if name == EVENT => self.sizes.of_path(path),
            None => Size::SCALAR,
        }
    }

    fn select(&mut self, node: &IdedExpr) -> Bound {
        let mut path = Vec::new();
        let mut inner = node;
        while let Expr::Select(select) = &inner.expr {
            if !select.test {
                path.push(select.field.as_str());
            }
            inner = &select.operand;
        }
        path.reverse();
        let steps = NODE * (path.len() + 1) as f64;
        if let Expr::Ident(name) = &inner.expr {
            return Bound {
                cost: steps,
                size: self.variable(name, &path),
                borrowed: true,
            };
        }
        let operand = self.of(inner);
        let copied = if operand.borrowed {
            0.0
        } else {
            operand.size.weight
        };
        Bound {
            cost: operand.cost + steps + copied,
            ..operand
        }
    }

    fn container<'n>(&mut self, parts: impl Iterator<Item = &'n IdedExpr>, width: f64) -> Bound {
        let mut cost = NODE;
        let mut size = Size::SCALAR;
        for part in parts {
            let part = self.of(part);
            cost += part.cost + part.size.weight;
            size = size.plus(part.size);
            size.nodes += 1.0;
        }
        // Wider may be what an element holds, and an index leads to it.
        size.width += width;
        Bound {
            cost,
            size,
            borrowed: false,
        }
    }

    fn call(&mut self, call: &CallExpr) -> Bound {
        let operands: Vec<Bound> = call
            .target
            .as_deref()
            .into_iter()
            .chain(&call.args)
            .map(|part| self.of(part))
            .collect();
        let all = operands
            .iter()
            .fold(Size::default(), |sum, one| sum.plus(one.size));
        let below: f64 = operands.iter().map(|one| one.cost).sum();
        let (work, size, borrowed) = match call.func_name.as_str() {
            operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::LOGICAL_NOT
            | operators::NOT_STRICTLY_FALSE => (0.0, Size::SCALAR, false),
            // Either branch may be the value, so both are counted: a maximum would not be a
            // polynomial.
            operators::CONDITIONAL => {
                let borrowed = operands.iter().all(|one| one.borrowed);
                (0.0, all, borrowed)
            }
            operators::INDEX => {
                let copied = match operands.first() {
                    Some(container) if !container.borrowed => container.size.weight,
                    _ => 0.0,
                };
                let size = operands
                    .first()
                    .map_or(Size::SCALAR, |container| container.size);
                (copied, size, copied == 0.0)
            }
            operators::EQUALS | operators::NOT_EQUALS => {
                // A literal ends the comparison after its own length.
                let literal = call.args.iter().zip(&operands).find_map(|(arg, operand)| {
                    matches!(arg.expr, Expr::Literal(_)).then_some(operand.size.weight)
                });
                (literal.unwrap_or(all.weight), Size::SCALAR, false)
            }
            operators::ADD | "dyn" => (all.weight, all, false),
            "string" => (
                all.weight,
                Size {
                    weight: all.weight + 32.0,
                    ..Size::SCALAR
                },
                false,
            ),
            // Comparisons, arithmetic and the other functions look at their operands once (a type
            // that does not fit is copied into the error) and give a scalar.
            _ => (all.weight, Size::SCALAR, false),
        };
        Bound {
            cost: below + work + NODE,
            size,
            borrowed,
        }
    }

    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Bound {
        let range = self.of(&comprehension.iter_range);
        let rounds = range.size.width;
        let gathers = matches!(&comprehension.accu_init.expr, Expr::List(_));
        let none = self.body(comprehension, Size::default(), gathers);
        let all = Size {
            width: range.size.nodes,
            ..range.size
        };
        let whole = self.body(comprehension, all, gathers);
        let over = |none: f64, whole: f64| rounds * none + (whole - none).max(0.0);
        let cost =
            range.cost + range.size.weight + NODE + over(none.cost + ROUND, whole.cost + ROUND);
        let size = if gathers {
            let nodes = over(none.size.nodes + 1.0, whole.size.nodes + 1.0);
            let weight = over(none.size.weight + VALUE, whole.size.weight + VALUE);
            Size {
                weight: weight + VALUE,
                width: rounds.max(whole.size.width),
                nodes,
            }
        } else {
            Size::SCALAR
        };
        let copied = if gathers { size.weight } else { 0.0 };
        Bound {
            cost: cost + copied,
            size,
            borrowed: false,
        }
    }

    /// One round, with an element of this size. What is gathered is moved on, not copied, so the
    /// list itself counts as nothing here.
    fn body(&mut self, comprehension: &ComprehensionExpr, element: Size, gathers: bool) -> Bound {
        let gathered = if gathers {
            Size::default()
        } else {
            Size::SCALAR
        };
        self.bound.push((comprehension.iter_var.clone(), element));
        self.bound.push((comprehension.accu_var.clone(), gathered));
        let condition = self.of(&comprehension.loop_cond);
        let step = self.of(&comprehension.loop_step);
        self.bound.truncate(self.bound.len() - 2);
        Bound {
            cost: condition.cost + step.cost + element.weight,
            ..step
        }
    }
}
