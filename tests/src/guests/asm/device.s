# Drives the entropy device on the PCI bus: finds it by the configuration ports, moves its BAR, and asks it for bytes one request at a
# time, halted until the MSI-X interrupt. The interrupt is the timer's, so it is counted as a tick. Where the registers
# are in the BAR is what this VMM's capabilities say.

.set RING_DESCRIPTORS, RAMS
.set RING_AVAILABLE, RAMS + 0x200
.set RING_USED, RAMS + 0x400
.set RING_BUFFER, RAMS + 0x800
.set RING_SIZE, 8
.set REQUEST, 64

# Selects a register (an immediate or %ecx) of the function in %ebp, and has the data port in %dx.
.macro SELECT register
    movl %ebp, %eax
    orl \register, %eax
    movw $0xcf8, %dx
    outl %eax, %dx
    movw $0xcfc, %dx
.endm

# Writes to the BAR at %ebx.
.macro BAR8 offset, value
    movb $\value, %al
    movb %al, %gs:\offset(%ebx)
.endm

.macro BAR16 offset, value
    movw $\value, %ax
    movw %ax, %gs:\offset(%ebx)
.endm

.macro BAR32 offset, value
    movl $\value, %eax
    movl %eax, %gs:\offset(%ebx)
.endm

# Writes to memory.
.macro MEM32 address, value
    movl $(\address), %ecx
    movl $(\value), %eax
    movl %eax, %gs:(%ecx)
.endm

.macro DEVICE mode
g_device\mode:
    cmpl $0, INDEX(%edi)
    jne g_heartbeat\mode
    movl $0x80000000, %ebp
1:  addl $0x800, %ebp
    SELECT $0
    inl %dx, %eax
    cmpl $0x10441af4, %eax
    je 2f
    cmpl $0x8000f800, %ebp
    jne 1b
    testl %ebp, %ebp
    EQUAL_OR ERROR_DEVICE, \mode
2:  movl %ebp, %ecx                     # there is the same in memory, at 0xe0000000
    shll $4, %ecx
    orl $0xe0000000, %ecx
    movl %gs:(%ecx), %eax
    cmpl $0x10441af4, %eax
    EQUAL_OR ERROR_DEVICE, \mode
    SELECT $0x10                        # move the BAR up from where it is
    inl %dx, %eax
    andl $0xfffffff0, %eax
    orl $0x10000000, %eax
    movl %eax, %ebx
    outl %eax, %dx
    SELECT $4
    movl $6, %eax                       # memory, bus master
    outl %eax, %dx
    SELECT $0x34
    inl %dx, %eax
3:  movzbl %al, %ecx                    # the next capability
    testl %ecx, %ecx
    jnz 4f
    cmpl $1, %ecx
    EQUAL_OR ERROR_DEVICE, \mode
4:  SELECT %ecx
    inl %dx, %eax
    cmpb $0x11, %al
    je 5f
    shrl $8, %eax
    jmp 3b
5:  orl $0x80000000, %eax               # MSI-X on
    outl %eax, %dx
    BAR32 0x4000, APIC
    BAR32 0x4004, 0
    BAR32 0x4008, TIMER_VECTOR
    BAR32 0x400c, 0

    BAR8 20, 0
    BAR8 20, 1
    BAR8 20, 3
    BAR32 8, 1
    BAR32 12, 1                         # VERSION_1
    BAR8 20, 11
    BAR16 22, 0
    BAR16 24, RING_SIZE
    BAR16 26, 0
    BAR32 32, RING_DESCRIPTORS
    BAR32 36, 0
    BAR32 40, RING_AVAILABLE
    BAR32 44, 0
    BAR32 48, RING_USED
    BAR32 52, 0
    BAR16 28, 1
    BAR8 20, 15
    movb %gs:20(%ebx), %al
    cmpb $15, %al
    EQUAL_OR ERROR_DEVICE, \mode
    MEM32 RING_DESCRIPTORS, RING_BUFFER
    MEM32 RING_DESCRIPTORS + 4, 0
    MEM32 RING_DESCRIPTORS + 8, REQUEST
    MEM32 RING_DESCRIPTORS + 12, 2

    xorl %esi, %esi                     # requests made
6:  MEM32 RING_BUFFER, 0
    MEM32 RING_BUFFER + REQUEST - 4, 0
    movl %esi, %ecx
    andl $(RING_SIZE - 1), %ecx
    leal RING_AVAILABLE + 4(,%ecx,2), %ecx
    xorl %eax, %eax
    movw %ax, %gs:(%ecx)
    incl %esi
    movl $(RING_AVAILABLE + 2), %ecx
    movw %si, %gs:(%ecx)
    BAR16 0x3000, 0
    movl $(RING_USED + 2), %ecx
7:  cli
    movw %gs:(%ecx), %ax
    cmpw %si, %ax
    je 8f
    sti
    hlt
    jmp 7b
8:  sti                                 # the interrupt may not have come yet
    movl %esi, %ecx
    decl %ecx
    andl $(RING_SIZE - 1), %ecx
    leal RING_USED + 8(,%ecx,8), %ecx
    movl %gs:(%ecx), %eax
    cmpl $REQUEST, %eax
    EQUAL_OR ERROR_DEVICE, \mode
    # Bytes at either end: all zeros are as good as impossible.
    movl $RING_BUFFER, %ecx
    movl %gs:(%ecx), %eax
    movl $(RING_BUFFER + REQUEST - 4), %ecx
    orl %gs:(%ecx), %eax
    testl %eax, %eax
    setz %al
    cmpb $0, %al
    EQUAL_OR ERROR_DEVICE, \mode
    # A rest, and an exit to the VMM for the status: a vCPU that only halts and is woken can keep an interpreting KVM's
    # processor to itself, and starves the work that the end of a VM waits for.
    movl $5000, %ecx
9:  pause
    decl %ecx
    jnz 9b
    movb %gs:20(%ebx), %al
    cmpb $15, %al
    EQUAL_OR ERROR_DEVICE, \mode
    COUNT_ONE
    jmp 6b
.endm
