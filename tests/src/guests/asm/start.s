# The way from the reset vector to the mode that the guest runs in, on every vCPU.
#
# The image is copied to RAM at BASE, where the first vCPU goes on and where the others start (SIPI vector BASE >> 12).
# As a kernel it is loaded at KERNEL, and copied from there.
# Every vCPU passes through protected mode, takes its number, and enters the mode and the work that the parameters name.
# There, in every mode: %edi is its area (with %ds so that (%edi) reaches it), %gs is flat over 4 GiB.

.set BASE, 0x10000
.set STATUS, {STATUS}
.set AREAS, {AREAS}
.set AREA_SIZE, {AREA_SIZE}
.set KERNEL, {KERNEL}
.set WAKING_VECTOR, {WAKING_VECTOR}
.set APIC, 0xfee00000
.set PML4, 0x1000
.set PDPT, 0x2000
.set PD, 0x3000
.set IDT, 0x7000
.set VECTORS, 48
.set TIMER_VECTOR, 32
.set SPURIOUS_VECTOR, 47
.set STUB_SIZE, 16

# The status page.
.set S_MAGIC, 0
.set S_ONLINE, 8
.set S_HELD, 12

# A vCPU's area.
.set COUNT, 0x00
.set TSC, 0x08
.set ERROR, 0x10
.set DETAIL, 0x14
.set TICKS, 0x18
.set GAP, 0x20
.set SWEEPS, 0x28
.set FOUND, 0x30
.set INDEX, 0x38
.set CURSOR, 0x3c
.set GENERATION, 0x40
.set ARMED, 0x44
.set SLEEP, 0x48
.set ALARM, 0x4c
.set PATTERN, 0x80
.set STOLEN, {STOLEN}
.set WANTED, 0x400
.set SEEN, 0x800

.set ERROR_EXCEPTION, 1
.set ERROR_TSC, 2
.set ERROR_COUNT, 3
.set ERROR_REGISTER, 4
.set ERROR_DEBUG, 5
.set ERROR_MSR, 6
.set ERROR_FPU, 7
.set ERROR_RAM, 8
.set ERROR_ROM, 9
.set ERROR_DEVICE, 10

.set HOLD_FPU, 1
.set HOLD_AVX, 2
.set HOLD_DEBUG, 4
.set HOLD_MSRS, 8
.set HOLD_TIMER, 16
.set HOLD_DEADLINE, 32
.set HOLD_STOLEN, 64
.set RAMS, {RAMS}
.set RAM_SIZE, {RAM_SIZE}
.set RAM_STEP, 1024                     # bytes of RAM checked in a sweep

.section .rodata.cpr_guest, "a", @progbits
.balign 16
.globl cpr_guest_start
cpr_guest_start:
.code16
    jmp g_ap16
.balign 4
    jmp g_bsp16
.balign 4
g_mode: .long 0
g_work: .long 0
g_hold: .long 0

g_bsp16:
    cli
    cld
    movw $(BASE >> 4), %ax
    movw %ax, %es
    xorw %si, %si
    xorw %di, %di
    movw $(cpr_guest_end - cpr_guest_start), %cx
    rep movsb %cs:(%si), %es:(%di)
    ljmpw $(BASE >> 4), $(1f - cpr_guest_start)
1:  xorl %esi, %esi
    jmp g_protect
# Where the first vCPU goes on after sleep, if it was booted as a kernel.
g_wake16:
    cli
    cld
    ljmpw $(BASE >> 4), $(1f - cpr_guest_start)
1:  xorl %esi, %esi
    jmp g_protect
g_ap16:
    cli
    cld
    movl $1, %esi
g_protect:
    lgdtl %cs:(g_gdtr - cpr_guest_start)
    movl $0x33, %eax                    # PE, MP, ET, NE; caches on
    movl %eax, %cr0
    ljmpl $0x08, $(BASE + g_flat - cpr_guest_start)

# The entry of a kernel that was loaded at KERNEL: flat protected mode.
.code32
.globl cpr_guest_pvh
cpr_guest_pvh:
    cld
    movl $KERNEL, %esi
    movl $BASE, %edi
    movl $(cpr_guest_end - cpr_guest_start), %ecx
    rep movsb
    lgdtl BASE + g_gdtr - cpr_guest_start
    ljmpl $0x08, $(BASE + 1f - cpr_guest_start)
1:  xorl %esi, %esi

g_flat:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    testl %esi, %esi
    jnz g_number

    # The first vCPU makes what all share.
    movl $0xf000, %esp
    movl $STATUS, %edi
    xorl %eax, %eax
    movl $1024, %ecx
    rep stosl
    movl $(g_tables - cpr_guest_start + BASE), %eax
    call *%eax
    movl $0x47525043, STATUS + S_MAGIC
    movl $0x54534555, STATUS + S_MAGIC + 4

g_number:
    movl $1, %eax
    lock xaddl %eax, STATUS + S_ONLINE
    movl %eax, %ebx
    shll $12, %eax
    leal AREAS(%eax), %edi
    leal AREA_SIZE(%edi), %esp
    movl %ebx, INDEX(%edi)
    movl $(0x100 | SPURIOUS_VECTOR), APIC + 0xf0

    testl %esi, %esi
    jnz 3f
    # Wake the others: INIT, and STARTUP twice as the MP specification has it.
    movl $0x000c4500, APIC + 0x300
    movl $5000, %ecx
1:  pause
    loop 1b
    movl $(0x000c4600 | BASE >> 12), APIC + 0x300
    movl $1000, %ecx
2:  pause
    loop 2b
    movl $(0x000c4600 | BASE >> 12), APIC + 0x300
3:
    movl BASE + g_mode - cpr_guest_start, %eax
    cmpl $64, %eax
    je g_to64
    cmpl $16, %eax
    je g_to16
    lidtl BASE + g_idtr32 - cpr_guest_start
    jmp g_enter32

g_to64:
    movl $0x620, %eax                   # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $PML4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl $0x101, %eax                   # LME, SCE
    xorl %edx, %edx
    wrmsr
    movl $0x80000033, %eax
    movl %eax, %cr0
    ljmpl $0x18, $(BASE + 1f - cpr_guest_start)
.code64
1:  lidtq BASE + g_idtr64 - cpr_guest_start
    jmp g_enter64

.code32
g_to16:
    movl INDEX(%edi), %ebx
    movw $0x28, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    ljmpl $0x20, $(1f - cpr_guest_start)
.code16
1:  movl $0x32, %eax
    movl %eax, %cr0
    ljmpw $(BASE >> 4), $(2f - cpr_guest_start)
2:  shll $8, %ebx
    addl $(AREAS >> 4), %ebx
    movw %bx, %ds
    movw %bx, %es
    movw %bx, %ss
    movl $AREA_SIZE, %esp
    xorl %edi, %edi
    lidtl %cs:(g_idtr16 - cpr_guest_start)
    jmp g_enter16

# Page tables (4 GiB, identity, 2 MiB pages), and the interrupt table of the mode.
.code32
g_tables:
    movl $(PDPT | 3), PML4
    movl $0, PML4 + 4
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $12, %eax
    addl $(PD | 3), %eax
    movl %eax, PDPT(,%ecx,8)
    movl $0, PDPT + 4(,%ecx,8)
    incl %ecx
    cmpl $4, %ecx
    jb 1b
    xorl %ecx, %ecx
2:  movl %ecx, %eax
    shll $21, %eax
    orl $0x83, %eax
    movl %eax, PD(,%ecx,8)
    movl $0, PD + 4(,%ecx,8)
    incl %ecx
    cmpl $2048, %ecx
    jb 2b

    movl BASE + g_mode - cpr_guest_start, %ebx
    xorl %ecx, %ecx
3:  movl %ecx, %eax
    shll $4, %eax
    cmpl $16, %ebx
    je 4f
    cmpl $64, %ebx
    je 5f
    addl $(BASE + g_stubs32 - cpr_guest_start), %eax
    movl %eax, %edx
    andl $0xffff, %eax
    orl $0x080000, %eax
    movw $0x8e00, %dx
    movl %eax, IDT(,%ecx,8)
    movl %edx, IDT + 4(,%ecx,8)
    jmp 6f
4:  addl $(BASE << 12 | (g_stubs16 - cpr_guest_start)), %eax
    movl %eax, 0(,%ecx,4)
    jmp 6f
5:  addl $(BASE + g_stubs64 - cpr_guest_start), %eax
    movl %eax, %edx
    andl $0xffff, %eax
    orl $0x180000, %eax
    movw $0x8e00, %dx
    movl %ecx, %esi
    shll $4, %esi
    movl %eax, IDT(%esi)
    movl %edx, IDT + 4(%esi)
    movl $0, IDT + 8(%esi)
    movl $0, IDT + 12(%esi)
6:  incl %ecx
    cmpl $VECTORS, %ecx
    jb 3b
    xorl %esi, %esi
    ret

.balign 8
g_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            # 0x08 code, 32 bits
    .quad 0x00cf93000000ffff            # 0x10 data, flat
    .quad 0x00af9b000000ffff            # 0x18 code, 64 bits
    .quad 0x00009b010000ffff            # 0x20 code, 16 bits, at BASE
    .quad 0x000093000000ffff            # 0x28 data, 16 bits
g_gdtr:
    .word . - g_gdt - 1
    .long BASE + g_gdt - cpr_guest_start
g_idtr16:
    .word 0x3ff
    .long 0
g_idtr32:
    .word VECTORS * 8 - 1
    .long IDT
g_idtr64:
    .word VECTORS * 16 - 1
    .quad IDT
