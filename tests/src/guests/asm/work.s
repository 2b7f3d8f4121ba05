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

.macro RETURN mode
.if \mode == 64
    iretq
.elseif \mode == 32
    iretl
.else
    iretw
.endif
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

g_poweroff\mode:
g_console\mode:
g_idle\mode:
g_patterns\mode:

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
    POP_EAX \mode
    RETURN \mode

g_exception\mode:
    POP_EAX \mode
    movl %eax, FOUND(%edi)
    POP_EAX \mode
    movl %eax, FOUND + 4(%edi)
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
