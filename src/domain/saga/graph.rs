//! Which step waits for which: who may run together, in what order, and back again. Steps are
//! known by their positions; names serve to read `depends_on` and to tell of a cycle.
//!
//! Made for a thousand steps that each name a thousand: what is asked often is a bit in a
//! table, and nothing recurses.

#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    error::Error,
    fmt,
};

use super::spec::StepSpec;

/// Names of a cycle that are shown.
const SHOWN_MAX: usize = 12;

/// Steps that can all be reached.
#[derive(Debug, Clone)]
pub struct Graph {
    needs: Vec<Vec<usize>>,
    needed_by: Vec<Vec<usize>>,
    order: Vec<usize>,
    ancestors: Ancestors,
}

/// Who comes before whom, at whatever distance.
#[derive(Debug, Clone)]
pub struct Ancestors(Table);

/// Steps that wait for one another in a circle.
#[derive(Debug, Clone)]
pub struct Cyclic {
    /// A shortest one through its first step, which also ends it; each waits for the next.
    pub cycle: Vec<String>,
    /// Those on a cycle are their own.
    pub ancestors: Ancestors,
}

/// What is wrong with one entry of a `depends_on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Unknown,
    /// The step's own name.
    Own,
}

impl Graph {
    /// Of steps by name and what each says it depends on. Where none says anything they run one
    /// after another; an empty list says something. Entries that name no other step are left out, repeated ones count once.
    pub fn new(names: &[&str], depends_on: &[Option<&[String]>]) -> Result<Self, Cyclic> {
        Self::telling(names, &positions(names), depends_on, |_, _, _| {})
    }

    /// As [`Graph::new`].
    pub fn of(steps: &[StepSpec]) -> Result<Self, Cyclic> {
        Self::new(&names(steps), &depends_on(steps))
    }

    /// As [`Graph::new`]; `tell` gets the position of a step, of an entry, and what is wrong with it.
    pub(super) fn telling(
        names: &[&str],
        positions: &HashMap<&str, usize>,
        depends_on: &[Option<&[String]>],
        mut tell: impl FnMut(usize, usize, Fault),
    ) -> Result<Self, Cyclic> {
        let mut direct = Table::new(names.len());
        if depends_on.iter().all(Option::is_none) {
            (1..names.len()).for_each(|step| direct.set(step, step - 1));
        }
        for (step, entries) in depends_on.iter().enumerate() {
            for (at, entry) in entries.unwrap_or_default().iter().enumerate() {
                match positions.get(entry.as_str()) {
                    _ if entry == names[step] => tell(step, at, Fault::Own),
                    None => tell(step, at, Fault::Unknown),
                    Some(need) => direct.set(step, *need),
                }
            }
        }
        Self::from_table(names, direct)
    }

    fn from_table(names: &[&str], direct: Table) -> Result<Self, Cyclic> {
        let needs: Vec<Vec<usize>> = (0..names.len()).map(|step| direct.row(step).collect()).collect();
        let ancestors = Ancestors::closing(direct);
        if let Some(first) = (0..names.len()).find(|step| ancestors.contains(*step, *step)) {
            let cycle = cycle_through(first, &needs).into_iter().map(|step| names[step].to_owned()).collect();
            return Err(Cyclic { cycle, ancestors });
        }
        let needed_by = turned(&needs);
        let order = order(&needs, &needed_by);
        Ok(Self { needs, needed_by, order, ancestors })
    }

    /// What a step waits for, ascending.
    pub fn needs(&self, step: usize) -> &[usize] {
        &self.needs[step]
    }

    /// The steps that wait for it, ascending.
    pub fn needed_by(&self, step: usize) -> &[usize] {
        &self.needed_by[step]
    }

    /// Each after all that it needs; otherwise as they were given.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    pub fn ancestors(&self) -> &Ancestors {
        &self.ancestors
    }

    /// What may run together, if all took equally long: each step after the last group that it needs.
    pub fn groups(&self) -> Vec<Vec<usize>> {
        let mut level = vec![0; self.order.len()];
        for step in &self.order {
            level[*step] = self.needs[*step].iter().map(|need| level[*need] + 1).max().unwrap_or(0);
        }
        grouped(&level, |_| true)
    }

    /// The steps that have something to undo, each after all of them that depended on it, at
    /// whatever distance; those of one group together.
    pub fn compensation_order(&self, has_undo: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
        let mut level = vec![0; self.order.len()];
        for step in self.order.iter().rev() {
            let after = |next: &usize| level[*next] + usize::from(has_undo(*next));
            level[*step] = self.needed_by[*step].iter().map(after).max().unwrap_or(0);
        }
        grouped(&level, has_undo)
    }
}

impl Ancestors {
    /// Row by row: whoever has `via` among its ancestors has those of `via` too. This holds for
    /// graphs with cycles as well.
    fn closing(mut table: Table) -> Self {
        for via in 0..table.count {
            let row = table.words(via).to_vec();
            for step in 0..table.count {
                if table.has(step, via) {
                    table.join(step, &row);
                }
            }
        }
        Self(table)
    }

    /// Whether `ancestor` is done whenever `step` runs.
    pub fn contains(&self, step: usize, ancestor: usize) -> bool {
        self.0.has(step, ancestor)
    }
}

/// `a -> b -> a`: a waits for b, and b for a.
impl fmt::Display for Cyclic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.cycle.len();
        if count <= SHOWN_MAX {
            return f.write_str(&self.cycle.join(" -> "));
        }
        let (head, tail) = (&self.cycle[..SHOWN_MAX - 2], &self.cycle[count - 2..]);
        let left_out = count - SHOWN_MAX;
        write!(f, "{} -> ({left_out} more) -> {}", head.join(" -> "), tail.join(" -> "))
    }
}

impl Error for Cyclic {}

pub(super) fn names(steps: &[StepSpec]) -> Vec<&str> {
    steps.iter().map(|step| step.name.as_str()).collect()
}

pub(super) fn depends_on(steps: &[StepSpec]) -> Vec<Option<&[String]>> {
    steps.iter().map(|step| step.depends_on.as_deref()).collect()
}

/// Of two steps with one name, the first.
pub(super) fn positions<'a>(names: &[&'a str]) -> HashMap<&'a str, usize> {
    names.iter().enumerate().rev().map(|(at, name)| (*name, at)).collect()
}

fn turned(needs: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut needed_by = vec![Vec::new(); needs.len()];
    for (step, needs) in needs.iter().enumerate() {
        for need in needs {
            needed_by[*need].push(step);
        }
    }
    needed_by
}

/// The least position of all that may come next, again and again.
fn order(needs: &[Vec<usize>], needed_by: &[Vec<usize>]) -> Vec<usize> {
    let mut missing: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut ready: BinaryHeap<_> = (0..needs.len()).filter(|step| missing[*step] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(needs.len());
    while let Some(Reverse(step)) = ready.pop() {
        order.push(step);
        for next in &needed_by[step] {
            missing[*next] -= 1;
            if missing[*next] == 0 {
                ready.push(Reverse(*next));
            }
        }
    }
    order
}

/// The shortest way from a step on a cycle back to it, both ends included.
fn cycle_through(first: usize, needs: &[Vec<usize>]) -> Vec<usize> {
    // Searched from the end: `next[step]` is the one that it leads to, on the way to `first`.
    let needed_by = turned(needs);
    let mut next: Vec<Option<usize>> = vec![None; needs.len()];
    let mut seen = VecDeque::from([first]);
    while let Some(step) = seen.pop_front().filter(|_| next[first].is_none()) {
        for before in &needed_by[step] {
            if next[*before].is_none() {
                next[*before] = Some(step);
                seen.push_back(*before);
            }
        }
    }
    let mut cycle = vec![first];
    while let Some(step) = next[cycle[cycle.len() - 1]] {
        cycle.push(step);
        if step == first {
            break;
        }
    }
    cycle
}

/// Positions by level, without levels that hold none.
fn grouped(level: &[usize], belongs: impl Fn(usize) -> bool) -> Vec<Vec<usize>> {
    let mut groups = vec![Vec::new(); level.len()];
    (0..level.len()).filter(|step| belongs(*step)).for_each(|step| groups[level[step]].push(step));
    groups.retain(|group| !group.is_empty());
    groups
}

/// A bit for each pair of steps.
#[derive(Debug, Clone)]
struct Table {
    count: usize,
    width: usize,
    bits: Vec<u64>,
}

impl Table {
    fn new(count: usize) -> Self {
        let width = count.div_ceil(64);
        Self { count, width, bits: vec![0; count * width] }
    }

    fn set(&mut self, row: usize, column: usize) {
        self.bits[row * self.width + column / 64] |= 1 << (column % 64);
    }

    fn has(&self, row: usize, column: usize) -> bool {
        self.bits[row * self.width + column / 64] >> (column % 64) & 1 == 1
    }

    fn words(&self, row: usize) -> &[u64] {
        &self.bits[row * self.width..(row + 1) * self.width]
    }

    fn join(&mut self, row: usize, others: &[u64]) {
        let own = &mut self.bits[row * self.width..(row + 1) * self.width];
        own.iter_mut().zip(others).for_each(|(own, other)| *own |= other);
    }

    /// The columns that are set, ascending.
    fn row(&self, row: usize) -> impl Iterator<Item = usize> {
        (0..self.count).filter(move |column| self.has(row, *column))
    }
}
