@ int harness_checked_call(void (*f)(), void *const arguments[4])
@ Calls f with up to four arguments and gives how many registers it did not keep that the
@ procedure-call standard wants kept: r4 to r11, and d8 to d15, which are q4 to q7. What begins with
@ harness_ is not counted.
    .syntax unified
    .thumb
    .section .text.harness_checked_call, "ax", %progbits
    .balign 4
    .global harness_checked_call
    .type harness_checked_call, %function
    .thumb_func
harness_checked_call:
    push {r4-r11, lr}
    sub sp, sp, #4
    vpush {d8-d15}
    mov r12, r0
    mov lr, r1
    movw r4, #0x5e04
    movw r5, #0x5e05
    movw r6, #0x5e06
    movw r7, #0x5e07
    movw r8, #0x5e08
    movw r9, #0x5e09
    movw r10, #0x5e0a
    movw r11, #0x5e0b
    vdup.32 q4, r4
    vdup.32 q5, r5
    vdup.32 q6, r6
    vdup.32 q7, r7
    ldm lr, {r0-r3}
    blx r12
    movs r0, #0
    .macro kept register, value
    movw r1, #\value
    cmp \register, r1
    it ne
    addne r0, r0, #1
    .endm
    kept r4, 0x5e04
    kept r5, 0x5e05
    kept r6, 0x5e06
    kept r7, 0x5e07
    kept r8, 0x5e08
    kept r9, 0x5e09
    kept r10, 0x5e0a
    kept r11, 0x5e0b
    .macro kept_vector register, value
    movw r1, #\value
    vcmp.i32 ne, \register, r1
    vmrs r1, p0
    cmp r1, #0
    it ne
    addne r0, r0, #1
    .endm
    kept_vector q4, 0x5e04
    kept_vector q5, 0x5e05
    kept_vector q6, 0x5e06
    kept_vector q7, 0x5e07
    vpop {d8-d15}
    add sp, sp, #4
    pop {r4-r11, pc}
    .size harness_checked_call, . - harness_checked_call
