//! Patterns held in the x87, SSE and AVX registers over long loops.

use std::arch::asm;

use crate::clocks::Clocks;
use crate::memory::Checks;
use crate::setup;

/// Turns of the empty loop that the registers are held over.
const TURNS: u64 = 20_000_000;
/// Rounding towards zero, all exceptions masked: not what anything else sets.
const HELD_MXCSR: u32 = 0x7f80;
static USUAL_MXCSR: u32 = 0x1f80;

/// What the registers hold: 16 of 32 bytes (SSE uses the first 16 of each), and 8 of the x87's 80 bits.
#[repr(C, align(32))]
#[derive(Clone, PartialEq)]
struct Registers {
    vector: [[u8; 32]; 16],
    x87: [[u8; 10]; 8],
    mxcsr: u32,
}

impl Registers {
    /// A pattern of a CPU and a generation; with `wide`, of all 32 bytes.
    fn pattern(cpu: usize, generation: u64, wide: bool) -> Self {
        let byte = |register: usize, at: usize| {
            (generation as u8).wrapping_mul(31).wrapping_add((register * 32 + at) as u8 ^ (cpu as u8) << 5)
        };
        let width = if wide { 32 } else { 16 };
        let mut registers = Self { vector: [[0; 32]; 16], x87: [[0; 10]; 8], mxcsr: HELD_MXCSR };
        for (index, register) in registers.vector.iter_mut().enumerate() {
            for (at, held) in register[..width].iter_mut().enumerate() {
                *held = byte(index, at);
            }
        }
        for (index, register) in registers.x87.iter_mut().enumerate() {
            for (at, held) in register[..7].iter_mut().enumerate() {
                *held = byte(index, at);
            }
            // A normal number: the mantissa's top bit set, the exponent in the middle.
            register[7] = 0x80 | index as u8;
            register[8] = index as u8;
            register[9] = 0x40;
        }
        registers
    }
}

/// Loads all registers, turns an empty loop, stores all registers; with the given move and register name.
macro_rules! hold {
    ($name:ident, $feature:literal, $mov:literal, $reg:literal) => {
        #[target_feature(enable = $feature)]
        fn $name(held: &Registers, found: &mut Registers) {
            // SAFETY: reads `held` and writes `found` at the offsets of their fields only; every register it
            // changes is declared, and MXCSR and the x87 control word are left as the ABI wants them.
            unsafe {
                asm!(
                    "ldmxcsr [{held} + 592]",
                    "fninit",
                    "fld tbyte ptr [{held} + 582]", "fld tbyte ptr [{held} + 572]",
                    "fld tbyte ptr [{held} + 562]", "fld tbyte ptr [{held} + 552]",
                    "fld tbyte ptr [{held} + 542]", "fld tbyte ptr [{held} + 532]",
                    "fld tbyte ptr [{held} + 522]", "fld tbyte ptr [{held} + 512]",
                    hold!(@load $mov, $reg, "0"), hold!(@load $mov, $reg, "1"), hold!(@load $mov, $reg, "2"),
                    hold!(@load $mov, $reg, "3"), hold!(@load $mov, $reg, "4"), hold!(@load $mov, $reg, "5"),
                    hold!(@load $mov, $reg, "6"), hold!(@load $mov, $reg, "7"), hold!(@load $mov, $reg, "8"),
                    hold!(@load $mov, $reg, "9"), hold!(@load $mov, $reg, "10"), hold!(@load $mov, $reg, "11"),
                    hold!(@load $mov, $reg, "12"), hold!(@load $mov, $reg, "13"), hold!(@load $mov, $reg, "14"),
                    hold!(@load $mov, $reg, "15"),
                    "2:", "dec {turns}", "jnz 2b",
                    hold!(@store $mov, $reg, "0"), hold!(@store $mov, $reg, "1"), hold!(@store $mov, $reg, "2"),
                    hold!(@store $mov, $reg, "3"), hold!(@store $mov, $reg, "4"), hold!(@store $mov, $reg, "5"),
                    hold!(@store $mov, $reg, "6"), hold!(@store $mov, $reg, "7"), hold!(@store $mov, $reg, "8"),
                    hold!(@store $mov, $reg, "9"), hold!(@store $mov, $reg, "10"), hold!(@store $mov, $reg, "11"),
                    hold!(@store $mov, $reg, "12"), hold!(@store $mov, $reg, "13"), hold!(@store $mov, $reg, "14"),
                    hold!(@store $mov, $reg, "15"),
                    "fstp tbyte ptr [{found} + 512]", "fstp tbyte ptr [{found} + 522]",
                    "fstp tbyte ptr [{found} + 532]", "fstp tbyte ptr [{found} + 542]",
                    "fstp tbyte ptr [{found} + 552]", "fstp tbyte ptr [{found} + 562]",
                    "fstp tbyte ptr [{found} + 572]", "fstp tbyte ptr [{found} + 582]",
                    "stmxcsr [{found} + 592]",
                    "ldmxcsr [{usual}]",
                    held = in(reg) held,
                    found = in(reg) found,
                    usual = in(reg) &raw const USUAL_MXCSR,
                    turns = inout(reg) TURNS => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                    out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                    options(nostack),
                );
            }
        }
    };
    (@load $mov:literal, $reg:literal, $n:literal) => {
        concat!($mov, " ", $reg, $n, ", [{held} + 32 * ", $n, "]")
    };
    (@store $mov:literal, $reg:literal, $n:literal) => {
        concat!($mov, " [{found} + 32 * ", $n, "], ", $reg, $n)
    };
}

hold!(hold_sse, "sse2", "movdqu", "xmm");
hold!(hold_avx, "avx", "vmovdqu", "ymm");

const _: () = assert!(std::mem::offset_of!(Registers, x87) == 512);
const _: () = assert!(std::mem::offset_of!(Registers, mxcsr) == 592);

/// Holds one pattern over the loop; returns whether it was still there.
fn holds(cpu: usize, generation: u64) -> bool {
    let wide = std::arch::is_x86_feature_detected!("avx");
    let held = Registers::pattern(cpu, generation, wide);
    let mut found = Registers { vector: [[0; 32]; 16], x87: [[0; 10]; 8], mxcsr: 0 };
    if wide {
        // SAFETY: the CPU has AVX.
        unsafe { hold_avx(&held, &mut found) };
    } else {
        // SAFETY: every x86-64 CPU has SSE2.
        unsafe { hold_sse(&held, &mut found) };
    }
    held == found
}

/// Keeps one CPU busy holding patterns, reading all clocks in between, without end.
pub fn run(checks: &Checks, clocks: &Clocks, cpu: usize) {
    setup::pin(cpu);
    let mut own = [0; 4];
    for generation in 0.. {
        if !holds(cpu, generation) {
            checks.error(|| format!("cpu {cpu} generation {generation}: FPU, SSE or AVX registers changed"));
        }
        checks.pass();
        for _ in 0..1000 {
            clocks.check(&mut own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_held_over_the_loop() {
        assert!((0..3).all(|generation| holds(1, generation)));
    }
}
