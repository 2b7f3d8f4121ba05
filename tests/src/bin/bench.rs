//! `scripts/bench`: measures handovers on /dev/kvm.

fn main() -> anyhow::Result<()> {
    cpr_tests::bench::main()
}
