//! Counts what passed, list by list.

pub type Outcome = Result<(), String>;

#[derive(Default)]
pub struct Report {
    lists: Vec<(&'static str, usize, usize)>,
}

impl Report {
    /// Runs one check on every case of a list.
    pub fn list<T>(
        &mut self,
        list: &'static str,
        cases: &[T],
        name: impl Fn(&T) -> &str,
        check: impl Fn(&T) -> Outcome,
    ) {
        let mut failed = 0;
        for case in cases {
            if let Err(why) = check(case) {
                failed += 1;
                println!("FAILED {list}, {}: {why}", name(case));
            }
        }
        self.lists.push((list, cases.len() - failed, failed));
    }

    /// Prints the table, and says whether there was something to pass and all of it passed.
    pub fn print(&self) -> bool {
        println!("{:<16} {:>6} {:>6}", "list", "passed", "failed");
        for (list, passed, failed) in &self.lists {
            println!("{list:<16} {passed:>6} {failed:>6}");
        }
        let passed: usize = self.lists.iter().map(|(_, passed, _)| passed).sum();
        let failed: usize = self.lists.iter().map(|(_, _, failed)| failed).sum();
        println!("\n{passed} passed, {failed} failed");
        failed == 0 && self.lists.iter().all(|(_, passed, _)| *passed > 0)
    }
}
