//! What the threads of a process do: printed where it does not do what it should.

use std::fs;
use std::path::Path;

/// Prints for each thread of a process its state, how much processor time it has had (in ticks), and where in the kernel it
/// waits.
pub fn show(pid: u32) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    println!("--- the threads of process {pid}");
    for task in tasks {
        println!("{}", describe(&task.path()));
    }
    println!("---");
}

fn describe(task: &Path) -> String {
    let read = |name| fs::read_to_string(task.join(name)).unwrap_or_default();
    let stat = read("stat");
    // After the name, which may have anything in it: state, and much further on the ticks in user mode and in the kernel's.
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or("?");
    let stack: Vec<_> =
        read("stack").lines().map(|line| line.trim_start_matches("[<0>] ").to_owned()).collect();
    format!("{} {} {}+{} {}", read("comm").trim(), field(0), field(11), field(12), stack.join(" < "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_name_and_state_are_told() {
        let own = describe(Path::new("/proc/thread-self"));
        let words: Vec<_> = own.split(' ').collect();
        assert!(words.len() >= 3 && words.contains(&"R"), "{own}");
    }
}
