# The guest that holds patterns: each is made once, held while the guest spins, and checked in every sweep.
# Patterns are of the vCPU's own number, so that one vCPU's state in another's place is found out.

# The next number of a sequence, in %eax.
.macro NEXT
    imull $0x0019660d, %eax, %eax
    addl $0x3c6ef35f, %eax
.endm

# Fills dwords from `from` to `to` of the area with a sequence.
.macro FILL from, to
    movl $\from, %ebx
8:  NEXT
    movl %eax, (%edi,%ebx)
    addl $4, %ebx
    cmpl $\to, %ebx
    jb 8b
.endm

# Ends this vCPU unless dwords `from` to `to` (from the start of an XSAVE image) are as wanted.
.macro SAME from, to, mode
    movl $\from, %ebx
8:  movl SEEN(%edi,%ebx), %eax
    movl %ebx, DETAIL(%edi)
    movl %eax, FOUND(%edi)
    cmpl WANTED(%edi,%ebx), %eax
    EQUAL_OR ERROR_FPU, \mode
    addl $4, %ebx
    cmpl $\to, %ebx
    jb 8b
.endm

.macro TO_DR number, mode
.if \mode == 64
    movq %rax, %dr\number
.else
    movl %eax, %dr\number
.endif
.endm

.macro DR_IS number, mode
.if \mode == 64
    movq %dr\number, %rax
.else
    movl %dr\number, %eax
.endif
    movl $\number, DETAIL(%edi)
    movl %eax, FOUND(%edi)
    cmpl PATTERN + 0x80 + 4 * \number(%edi), %eax
    EQUAL_OR ERROR_DEBUG, \mode
.endm

.macro ARM_DEADLINE
    rdtsc
    addl $5000000, %eax
    adcl $0, %edx
    movl $0x6e0, %ecx
    wrmsr
.endm

# Starts the timer that %esi names.
.macro START_TIMER
    movl $(APIC + 0x3e0), %eax
    movl $3, %gs:(%eax)                 # bus clock by 16
    testl $HOLD_DEADLINE, %esi
    jz 7f
    movl $(APIC + 0x320), %eax
    movl $(0x40000 | TIMER_VECTOR), %gs:(%eax)
    lock orl $0, ARMED(%edi)
    movl $1, ARMED(%edi)
    ARM_DEADLINE
    jmp 8f
7:  movl $(APIC + 0x320), %eax
    movl $(0x20000 | TIMER_VECTOR), %gs:(%eax)
    movl $(APIC + 0x380), %eax
    movl $125000, %gs:(%eax)
8:
.endm

# The MSRs: number, low and high half, and what the low half grows by with the vCPU's number.
g_msrs:
    .long 0x174, 0x00000010, 0x00000000, 8          # SYSENTER_CS
    .long 0x175, 0x00345678, 0x00000000, 0x1000     # SYSENTER_ESP
    .long 0x176, 0x00abcdef, 0x00000000, 0x1000     # SYSENTER_EIP
    .long 0x277, 0x00070106, 0x00070406, 0          # PAT
    .long 0x200, 0x70000000, 0x00000000, 0x100000   # MTRR_PHYSBASE0
    .long 0x201, 0xfff00800, 0x00000000, 0          # MTRR_PHYSMASK0
    .long 0x250, 0x06060606, 0x06060606, 0          # MTRR_FIX64K_00000
    .long 0x2ff, 0x00000c06, 0x00000000, 0          # MTRR_DEF_TYPE
    .long 0xc0000081, 0x00000000, 0x00180008, 0     # STAR
    .long 0xc0000082, 0x81234560, 0xffffffff, 0x1000 # LSTAR
    .long 0xc0000083, 0x81765430, 0xffffffff, 0x1000 # CSTAR
    .long 0xc0000084, 0x00047700, 0x00000000, 0     # SFMASK
    .long 0xc0000102, 0x89abcde0, 0xffff8888, 0x1000 # KERNEL_GS_BASE
g_tsc_aux:
    .long 0xc0000103, 0x00005a00, 0x00000000, 1     # TSC_AUX; PAT again where there is no RDTSCP
g_msrs_of_long_mode:
    .long 0xc0000100, 0x13579bd0, 0x00007bcd, 0x1000 # FS_BASE
g_msrs_end:

# What is to be done with each MSR: %ecx its number, %edx:%eax its value.
.macro EACH_MSR
    movl $(BASE + g_msrs - cpr_guest_start), %esi
7:  movl %gs:(%esi), %ecx
    movl %gs:12(%esi), %eax
    imull INDEX(%edi), %eax
    addl %gs:4(%esi), %eax
    movl %gs:8(%esi), %edx
.endm

.macro NEXT_MSR mode
    addl $16, %esi
.if \mode == 64
    cmpl $(BASE + g_msrs_end - cpr_guest_start), %esi
.else
    cmpl $(BASE + g_msrs_of_long_mode - cpr_guest_start), %esi
.endif
    jb 7b
.endm

.macro PATTERNS mode
g_patterns\mode:
    movl $(BASE + g_hold - cpr_guest_start), %eax
    movl %gs:(%eax), %esi
    movl $1, %eax
    cpuid
    andl $0x14000000, %ecx              # XSAVE, AVX
    cmpl $0x14000000, %ecx
    je 1f
    andl $(~HOLD_AVX), %esi
1:  movl $(STATUS + S_HELD), %eax
    movl %esi, %gs:(%eax)

    movl $0x80000001, %eax
    cpuid
    testl $(1 << 27), %edx              # RDTSCP
    jnz 1f
    movl $(BASE + g_tsc_aux - cpr_guest_start), %ebx
    movl $0x277, %gs:(%ebx)
    movl $0x00070106, %gs:4(%ebx)
    movl $0x00070406, %gs:8(%ebx)
    movl $0, %gs:12(%ebx)
1:
    # General registers, and the sequence that all patterns begin with.
    movl INDEX(%edi), %eax
    incl %eax
    imull $0x9e3779b1, %eax, %eax
    FILL PATTERN, PATTERN+0x80

    testl $HOLD_DEBUG, %esi
    jz 2f
    FILL PATTERN+0x80, PATTERN+0x90
    movl INDEX(%edi), %ebx
    shll $12, %ebx
    addl $0x00e00000, %ebx
    movl %ebx, PATTERN + 0x80(%edi)
    movl $0x000d0403, PATTERN + 0x80 + 4*7(%edi)    # DR0: writes of 4 bytes to a page that nobody uses
    movl %eax, %ebx
.irp number, 0, 1, 2, 3, 7
    movl PATTERN + 0x80 + 4*\number(%edi), %eax
    TO_DR \number, \mode
.endr
    movl %ebx, %eax
2:
    testl $(HOLD_FPU | HOLD_AVX), %esi
    jz 4f
    movl %eax, %ebp
.if \mode == 64
    movq %cr4, %rax
.else
    movl %cr4, %eax
.endif
    orl $0x600, %eax                    # OSFXSR, OSXMMEXCPT
    testl $HOLD_AVX, %esi
    jz 1f
    orl $0x40000, %eax                  # OSXSAVE
1:
.if \mode == 64
    movq %rax, %cr4
.else
    movl %eax, %cr4
.endif
    fninit
    fxsave WANTED(%edi)
    movl %ebp, %eax
    FILL WANTED+32, WANTED+832
    movb $0xff, WANTED + 4(%edi)        # every x87 register is in use
    movl $0x5f80, WANTED + 24(%edi)     # MXCSR: round up
    xorl %ebx, %ebx
3:  movw $0, WANTED + 32 + 10(%edi,%ebx)
    movl $0, WANTED + 32 + 12(%edi,%ebx)
    addl $16, %ebx
    cmpl $128, %ebx
    jb 3b
    xorl %ebx, %ebx
    movl $7, WANTED + 512(%edi)         # XSTATE_BV
3:  movl $0, WANTED + 516(%edi,%ebx)
    addl $4, %ebx
    cmpl $60, %ebx
    jb 3b
    testl $HOLD_AVX, %esi
    jz 1f
    xorl %ecx, %ecx
    xorl %edx, %edx
    movl $7, %eax
    xsetbv
    xrstor WANTED(%edi)
    jmp 4f
1:  fxrstor WANTED(%edi)
4:
    testl $HOLD_MSRS, %esi
    jz 5f
    movl %esi, %ebp
    EACH_MSR
    wrmsr
    NEXT_MSR \mode
    movl %ebp, %esi
5:
    testl $HOLD_STOLEN, %esi
    jz 5f
    movl INDEX(%edi), %eax
    imull $AREA_SIZE, %eax
    addl $(AREAS + STOLEN + 1), %eax
    xorl %edx, %edx
    movl $0x4b564d03, %ecx              # KVM's steal time
    wrmsr
5:
    # RAM: each dword is of its address and of how often it was written.
    movl INDEX(%edi), %ebx
    shll $16, %ebx
    addl $RAMS, %ebx
    movl $(RAM_SIZE / 4), %ecx
6:  imull $0x9e3779b1, %ebx, %eax
    movl %eax, %gs:(%ebx)
    addl $4, %ebx
    decl %ecx
    jnz 6b

    testl $(HOLD_TIMER | HOLD_DEADLINE), %esi
    jz g_sweep\mode
    START_TIMER
    sti

g_sweep\mode:
    movl PATTERN + 0x00(%edi), %eax
    movl PATTERN + 0x08(%edi), %ebx
    movl PATTERN + 0x10(%edi), %edx
    movl PATTERN + 0x18(%edi), %esi
    movl PATTERN + 0x20(%edi), %ebp
.if \mode == 64
    movq PATTERN + 0x00(%rdi), %rax
    movq PATTERN + 0x08(%rdi), %rbx
    movq PATTERN + 0x10(%rdi), %rdx
    movq PATTERN + 0x18(%rdi), %rsi
    movq PATTERN + 0x20(%rdi), %rbp
    movq PATTERN + 0x28(%rdi), %r8
    movq PATTERN + 0x30(%rdi), %r9
    movq PATTERN + 0x38(%rdi), %r10
    movq PATTERN + 0x40(%rdi), %r11
    movq PATTERN + 0x48(%rdi), %r12
    movq PATTERN + 0x50(%rdi), %r13
    movq PATTERN + 0x58(%rdi), %r14
    movq PATTERN + 0x60(%rdi), %r15
.endif
    movl $1000, %ecx
1:  COUNT_ONE
    decl %ecx
    jnz 1b
.if \mode == 64
    REGISTER_IS64 0x00, rax
    REGISTER_IS64 0x08, rbx
    REGISTER_IS64 0x10, rdx
    REGISTER_IS64 0x18, rsi
    REGISTER_IS64 0x20, rbp
    REGISTER_IS64 0x28, r8
    REGISTER_IS64 0x30, r9
    REGISTER_IS64 0x38, r10
    REGISTER_IS64 0x40, r11
    REGISTER_IS64 0x48, r12
    REGISTER_IS64 0x50, r13
    REGISTER_IS64 0x58, r14
    REGISTER_IS64 0x60, r15
.else
    REGISTER_IS32 0x00, eax, \mode
    REGISTER_IS32 0x08, ebx, \mode
    REGISTER_IS32 0x10, edx, \mode
    REGISTER_IS32 0x18, esi, \mode
    REGISTER_IS32 0x20, ebp, \mode
.endif
    leal AREA_SIZE(%edi), %eax
    movl $0xff, DETAIL(%edi)
    cmpl %eax, %esp
    EQUAL_OR ERROR_REGISTER, \mode

    rdtsc
    movl %eax, %ebx
    movl %edx, %ecx
    subl TSC(%edi), %ebx
    sbbl TSC + 4(%edi), %ecx
    jae 1f
    movl $ERROR_TSC, ERROR(%edi)
    jmp g_dead\mode
1:  movl %eax, TSC(%edi)
    movl %edx, TSC + 4(%edi)

    movl $(STATUS + S_HELD), %eax
    movl %gs:(%eax), %ebp
    testl $HOLD_DEBUG, %ebp
    jz 2f
.irp number, 0, 1, 2, 3, 7
    DR_IS \number, \mode
.endr
2:
    testl $HOLD_MSRS, %ebp
    jz 3f
    EACH_MSR
    movl %ecx, DETAIL(%edi)
    movl %eax, PATTERN + 0xa0(%edi)
    movl %edx, PATTERN + 0xa4(%edi)
    rdmsr
    movl %eax, FOUND(%edi)
    movl %edx, FOUND + 4(%edi)
    cmpl PATTERN + 0xa0(%edi), %eax
    EQUAL_OR ERROR_MSR, \mode
    cmpl PATTERN + 0xa4(%edi), %edx
    EQUAL_OR ERROR_MSR, \mode
    NEXT_MSR \mode
3:
    testl $(HOLD_FPU | HOLD_AVX), %ebp
    jz 5f
    testl $HOLD_AVX, %ebp
    jz 4f
    movl $7, %eax
    xorl %edx, %edx
    xsave SEEN(%edi)
.if \mode == 64
    SAME 576, 832, \mode
.else
    SAME 576, 704, \mode
.endif
    jmp 6f
4:  fxsave SEEN(%edi)
6:  movzwl SEEN(%edi), %eax             # FCW
    movl %eax, FOUND(%edi)
    movl $0, DETAIL(%edi)
    cmpw WANTED(%edi), %ax
    EQUAL_OR ERROR_FPU, \mode
    SAME 24, 28, \mode
.if \mode == 64
    SAME 32, 416, \mode
.else
    SAME 32, 288, \mode
.endif
5:
    # A step through RAM: what is there must be of the last round, and becomes of the next.
    movl INDEX(%edi), %ebx
    shll $16, %ebx
    addl $RAMS, %ebx
    addl CURSOR(%edi), %ebx
    movl $(RAM_STEP / 4), %ecx
    movl GENERATION(%edi), %edx
6:  imull $0x9e3779b1, %ebx, %eax
    addl %edx, %eax
    movl %ebx, DETAIL(%edi)
    cmpl %gs:(%ebx), %eax
    EQUAL_OR ERROR_RAM, \mode
    incl %eax
    movl %eax, %gs:(%ebx)
    addl $4, %ebx
    decl %ecx
    jnz 6b
    addl $RAM_STEP, CURSOR(%edi)
    cmpl $RAM_SIZE, CURSOR(%edi)
    jb 7f
    movl $0, CURSOR(%edi)
    incl GENERATION(%edi)
7:
    # The ROM is where it was, and what it was.
    movl $0xffff0000, %ebx
    movl $BASE, %esi
    movl $64, %ecx
8:  movl %gs:(%ebx), %eax
    movl %ebx, DETAIL(%edi)
    cmpl %gs:(%esi), %eax
    EQUAL_OR ERROR_ROM, \mode
    addl $4, %ebx
    addl $4, %esi
    decl %ecx
    jnz 8b
    movl $0, DETAIL(%edi)
    addl $1, SWEEPS(%edi)
    adcl $0, SWEEPS + 4(%edi)
    jmp g_sweep\mode
.endm

# Ends this vCPU unless a register is as its pattern.
.macro REGISTER_IS64 slot, name
    movl $\slot, DETAIL(%edi)
    cmpq PATTERN + \slot(%rdi), %\name
    EQUAL_OR ERROR_REGISTER, 64
.endm

.macro REGISTER_IS32 slot, name, mode
    movl $\slot, DETAIL(%edi)
    cmpl PATTERN + \slot(%edi), %\name
    EQUAL_OR ERROR_REGISTER, \mode
.endm
