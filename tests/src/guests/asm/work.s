# What the guest does, assembled once for each mode: MODE is 16, 32 or 64. Addresses are 32 bits wide in all of them.

# Ends this vCPU with an error unless the last comparison was equal.
.macro EQUAL_OR code, mode
    je 9f
    movl $\code, ERROR(%edi)
    jmp g_dead\mode
9:
.endm

.macro PUSH_EAX mode
.if \mode == 64
    pushq %rax
.else
    pushl %eax
.endif
.endm

.macro POP_EAX mode
.if \mode == 64
    popq %rax
.else
    popl %eax
.endif
.endm

.macro PUSH_ECX mode
.if \mode == 64
    pushq %rcx
.else
    pushl %ecx
.endif
.endm

.macro POP_ECX mode
.if \mode == 64
    popq %rcx
.else
    popl %ecx
.endif
.endm

.macro PUSH_EDX mode
.if \mode == 64
    pushq %rdx
.else
    pushl %edx
.endif
.endm

.macro POP_EDX mode
.if \mode == 64
    popq %rdx
.else
    popl %edx
.endif
.endm

.macro RETURN mode
.if \mode == 64
    iretq
.elseif \mode == 32
    pushl 8(%esp)                       # what IRET does: not every KVM that interprets has it in protected mode
    popfl
    lretl $4
.else
    iretw
.endif
.endm

# Counts once; leaves all registers as they are.
.macro COUNT_ONE
    addl $1, COUNT(%edi)
    adcl $0, COUNT + 4(%edi)
.endm

.macro WORK mode
.code\mode

g_enter\mode:
    movl $(BASE + g_work - cpr_guest_start), %eax
    movl %gs:(%eax), %eax
    cmpl $1, %eax
    je g_patterns\mode
    cmpl $2, %eax
    je g_dead\mode
    cmpl $3, %eax
    je g_poweroff\mode
    cmpl $4, %eax
    je g_console\mode
    cmpl $5, %eax
    je g_idle\mode
    cmpl $6, %eax
    je g_device\mode
    cmpl $7, %eax
    je g_sleep\mode
    cmpl $8, %eax
    je g_rest\mode

# Counts as fast as it can. The count is in %esi:%ebp and in RAM; both must agree, so a second process that runs the
# same guest on the same RAM is found out.
g_heartbeat\mode:
    xorl %ebp, %ebp
    xorl %esi, %esi
    rdtsc
    movl %eax, TSC(%edi)
    movl %edx, TSC + 4(%edi)
1:  rdtsc
    movl %eax, %ebx
    movl %edx, %ecx
    subl TSC(%edi), %ebx
    sbbl TSC + 4(%edi), %ecx
    jae 2f
    movl $ERROR_TSC, ERROR(%edi)
    jmp g_dead\mode
2:  movl %eax, TSC(%edi)
    movl %edx, TSC + 4(%edi)
    cmpl GAP + 4(%edi), %ecx
    jb 4f
    ja 3f
    cmpl GAP(%edi), %ebx
    jbe 4f
3:  movl %ebx, GAP(%edi)
    movl %ecx, GAP + 4(%edi)
4:  movl %ebp, %eax
    movl %esi, %edx
    movl %ebp, %ebx
    movl %esi, %ecx
    addl $1, %ebx
    adcl $0, %ecx
    lock cmpxchg8b (%edi)
    EQUAL_OR ERROR_COUNT, \mode
    movl %ebx, %ebp
    movl %ecx, %esi
    jmp 1b

# Powers off when the power button's status bit is set (PM1_STS at 0x600, PM1_CNT at 0x604).
g_poweroff\mode:
    cmpl $0, INDEX(%edi)
    jne g_heartbeat\mode
1:  COUNT_ONE
    movw $0x600, %dx
    inw %dx, %ax
    testw $0x100, %ax
    jz 1b
    movw $0x100, %ax
    outw %ax, %dx
    movw $0x604, %dx
    movw $(5 << 10 | 1 << 13), %ax
    outw %ax, %dx
    jmp g_dead\mode

# Sleeps (ACPI S3) when it is told to: 1, and goes on by its waking vector; 2, without one; 3, until an alarm at the most; 4, until
# a byte comes at the serial port, at the most. Being woken is a tick, and what woke it (PM1_STS, GPE0_STS) and a byte of the port's
# is what it found. The other vCPUs count.
g_sleep\mode:
    cmpl $0, INDEX(%edi)
    jne 3f
    movw $0x600, %dx
    inw %dx, %ax
    testw $0x8000, %ax
    jz 1f
    outw %ax, %dx
    movzwl %ax, %eax
    movl %eax, FOUND(%edi)
    movw $0x608, %dx
    inb %dx, %al
    outb %al, %dx
    movb %al, FOUND + 4(%edi)
    movw $0x3fd, %dx
    inb %dx, %al
    andb $1, %al
    jz 4f
    movw $0x3f8, %dx
    inb %dx, %al
4:  movb %al, FOUND + 5(%edi)
    xorl %eax, %eax                     # no event is to wake it next time
    movw $0x602, %dx
    outw %ax, %dx
    movw $0x60a, %dx
    outb %al, %dx
    addl $1, TICKS(%edi)
    adcl $0, TICKS + 4(%edi)
1:  COUNT_ONE
    movl SLEEP(%edi), %ecx
    testl %ecx, %ecx
    jz 1b
    movl $0, SLEEP(%edi)
    cmpl $3, %ecx
    jne 5f
    movb $0x0c, %al                     # what came before is not it
    outb %al, $0x70
    inb $0x71, %al
    movb $1, %al
    movb ALARM(%edi), %ah
    outw %ax, $0x70
    movb $3, %al
    movb ALARM + 1(%edi), %ah
    outw %ax, $0x70
    movb $5, %al
    movb ALARM + 2(%edi), %ah
    outw %ax, $0x70
    movw $0x220b, %ax                   # AIE, 24 hours
    outw %ax, $0x70
    movw $0x602, %dx
    movw $(1 << 10), %ax
    outw %ax, %dx
5:  cmpl $4, %ecx
    jne 6f
    movb $1, %al
    movw $0x608, %dx
    outb %al, %dx
    movw $0x60a, %dx
    outb %al, %dx
6:  xorl %eax, %eax
    cmpl $2, %ecx
    je 2f
    movl $(BASE + g_wake16 - cpr_guest_start), %eax
2:  movl $WAKING_VECTOR, %ecx
    movl %eax, %gs:(%ecx)
    movw $0x604, %dx
    movw $(3 << 10 | 1 << 13), %ax
    outw %ax, %dx
    jmp g_dead\mode
3:  COUNT_ONE
    jmp 3b

# Writes lines of eight hexadecimal digits, counting, to the serial port; what it reads there it sends back between them.
g_console\mode:
    cmpl $0, INDEX(%edi)
    jne g_heartbeat\mode
    movw $0x3fa, %dx                    # FIFOs on
    movb $1, %al
    outb %al, %dx
    movb $'\n', SEEN + 8(%edi)
1:  movl COUNT(%edi), %ebx
    leal SEEN(%edi), %esi
    movl %esi, %ebp
    movl $8, %ecx
2:  roll $4, %ebx
    movb %bl, %al
    andb $15, %al
    addb $'0', %al
    cmpb $'9', %al
    jbe 3f
    addb $('a' - '0' - 10), %al
3:  movb %al, (%ebp)
    incl %ebp
    decl %ecx
    jnz 2b
    movw $0x3fd, %dx
4:  inb %dx, %al
    testb $0x20, %al
    jz 4b
    movw $0x3f8, %dx
    movl $9, %ecx
    rep outsb
    COUNT_ONE
5:  movw $0x3fd, %dx
    inb %dx, %al
    testb $1, %al
    jz 1b
    movw $0x3f8, %dx
    inb %dx, %al
    movb %al, %bl
    movw $0x3fd, %dx
6:  inb %dx, %al
    testb $0x20, %al
    jz 6b
    movb %bl, %al
    movw $0x3f8, %dx
    outb %al, %dx
    jmp 5b

# Sleeps between timer interrupts.
g_idle\mode:
    movl $HOLD_TIMER, %esi
    START_TIMER
1:  sti
    hlt
    COUNT_ONE
    jmp 1b

# The same with an interrupt every 100 ms.
g_rest\mode:
    movl $HOLD_TIMER, %esi
    START_TIMER
    movl $(APIC + 0x380), %eax
    movl $6250000, %gs:(%eax)
2:  sti
    hlt
    COUNT_ONE
    jmp 2b

    PATTERNS \mode

    DEVICE \mode

g_dead\mode:
    cli
    hlt
    jmp g_dead\mode

.balign STUB_SIZE
g_stubs\mode:
.set g_vector, 0
.rept 32
    movl $g_vector, DETAIL(%edi)
    jmp g_exception\mode
    .balign STUB_SIZE
    .set g_vector, g_vector + 1
.endr
    jmp g_timer\mode
    .balign STUB_SIZE
.rept VECTORS - 33
    RETURN \mode
    .balign STUB_SIZE
.endr

g_timer\mode:
    addl $1, TICKS(%edi)
    adcl $0, TICKS + 4(%edi)
    PUSH_EAX \mode
    movl $(APIC + 0xb0), %eax
    movl $0, %gs:(%eax)
    cmpl $0, ARMED(%edi)
    je 1f
    PUSH_ECX \mode
    PUSH_EDX \mode
    ARM_DEADLINE
    POP_EDX \mode
    POP_ECX \mode
1:  POP_EAX \mode
    RETURN \mode

g_exception\mode:
    POP_EAX \mode
    movl %eax, FOUND(%edi)
    POP_EAX \mode
    movl %eax, FOUND + 4(%edi)
    movl %ecx, CURSOR(%edi)
    movl $ERROR_EXCEPTION, ERROR(%edi)
    jmp g_dead\mode
.endm

WORK 16
WORK 32
WORK 64

.balign 16
.globl cpr_guest_end
cpr_guest_end:
.code64
.text
