/* The layers of cycles.h. What each instruction costs stands in test_cycles.py. */
#define LAYER(name, body)                                                                          \
    __asm__(".syntax unified\n"                                                                    \
            ".text\n"                                                                              \
            ".p2align 2\n"                                                                         \
            ".global cycles_layer_" #name "\n"                                                     \
            ".type cycles_layer_" #name ", %function\n"                                            \
            ".thumb_func\n"                                                                        \
            "cycles_layer_" #name ":\n" body ".size cycles_layer_" #name                           \
            ", . - cycles_layer_" #name "\n");

LAYER(alu, "movs r0, #1\n adds r0, #2\n eor.w r0, r0, r0\n ssat r0, #8, r0, asr #5\n"
           "nop\n bx lr\n")
LAYER(move_pc, "movs r0, #0\n mov pc, lr\n")
LAYER(multiply, "muls r0, r1, r0\n mul r0, r1, r2\n mla r0, r1, r2, r3\n mls r0, r1, r2, r3\n"
                "smull r0, r1, r2, r3\n umull r0, r1, r2, r3\n smlal r0, r1, r2, r3\n"
                "umlal r0, r1, r2, r3\n umaal r0, r1, r2, r3\n smlad r0, r1, r2, r3\n"
                "smladx r0, r1, r2, r3\n smlald r0, r1, r2, r3\n smuad r0, r1, r2\n"
                "smlabb r0, r1, r2, r3\n smulbt r0, r1, r2\n smlawb r0, r1, r2, r3\n"
                "smmul r0, r1, r2\n smmla r0, r1, r2, r3\n smmlar r0, r1, r2, r3\n bx lr\n")
LAYER(extend, "sxtb16 r0, r1, ror #8\n uxtab r0, r1, r2\n sxth r0, r1\n pkhbt r0, r1, r2\n"
              "pkhtb r0, r1, r2, asr #16\n bx lr\n")
LAYER(divide, "sdiv r0, r1, r2\n udiv r0, r1, r2\n bx lr\n")
LAYER(load, "sub sp, #16\n movs r2, #0\n ldr r0, [sp]\n ldr r1, [sp, #4]\n"
            "ldrb.w r3, [sp, #1]\n adds r0, #1\n ldrsh.w r0, [sp, #2]\n str r0, [sp]\n"
            "ldr.w r0, [sp, r2]\n ldr.w r1, [sp, r2, lsl #2]\n add sp, #16\n bx lr\n")
LAYER(load_loop, "sub sp, #16\n movs r2, #3\n ldr r0, [sp]\n"
                 "1: ldr r1, [sp, #4]\n subs r2, #1\n bne 1b\n add sp, #16\n bx lr\n")
LAYER(store, "sub sp, #16\n movs r2, #0\n mov r1, sp\n str r0, [sp, #8]\n strb r0, [r1, #3]\n"
             "strh r0, [r1], #4\n str r0, [r1, r2]\n strb.w r0, [sp, r2, lsl #1]\n"
             "strh r0, [r1, r2]\n add sp, #16\n bx lr\n")
LAYER(doubles, "sub sp, #16\n ldrd r0, r1, [sp]\n strd r0, r1, [sp, #8]\n add sp, #16\n bx lr\n")
LAYER(multiples, "push {r4-r6}\n pop {r4-r6}\n sub sp, #16\n mov r3, sp\n ldm r3, {r0-r2}\n"
                 "stm r3!, {r0, r1}\n ldmdb r3, {r0, r1}\n stmdb r3!, {r0, r1}\n"
                 "push.w {r8, r9}\n pop.w {r8, r9}\n add sp, #16\n bx lr\n")
LAYER(pop_pc, "push {r4, lr}\n pop {r4, pc}\n")
LAYER(load_pc, "sub sp, #8\n str.w lr, [sp, #4]\n add sp, #4\n ldr.w pc, [sp], #4\n")
LAYER(behind_pc, "str.w lr, [sp, #-8]!\n b 2f\n 1: ldr.w pc, [sp], #8\n 2: ldr r0, [sp]\n b 1b\n")
LAYER(branches, "movs r0, #0\n b 1f\n nop\n 1: cbz r0, 2f\n nop\n 2: cbnz r0, 3f\n cmp r0, #0\n"
                "bne 3f\n beq.w 3f\n nop\n 3: bx lr\n")
/* The code behind the conditional branch runs six times, of which it fell through twice: the
 * branch is taken in the first and the second of four rounds, and jumped behind in all rounds. */
LAYER(joined, "movs r0, #4\n b 2f\n 1: cmp r0, #3\n bge 3f\n 2: nop\n 3: subs r0, #1\n"
              "cmp r0, #0\n bgt 1b\n bx lr\n")
LAYER(call, "mov r3, lr\n bl 1f\n ldr r2, =2f + 1\n blx r2\n b 3f\n"
            "1: bx lr\n 2: bx lr\n 3: mov lr, r3\n bx lr\n .ltorg\n")
LAYER(tables, "movs r0, #1\n tbb [pc, r0]\n 1: .byte (2f - 1b) / 2\n .byte (3f - 1b) / 2\n"
              "2: nop\n 3: tbh [pc, r0, lsl #1]\n"
              "4: .short (2b - 4b) / 2\n .short (5f - 4b) / 2\n 5: bx lr\n")
LAYER(skipped, "sub sp, #16\n movs r0, #1\n cmp r0, #0\n itttt eq\n ldreq r1, [sp]\n"
               "streq r1, [sp]\n ldmiaeq.w sp, {r1, r2, r3}\n ldrdeq r1, r2, [sp]\n"
               "add sp, #16\n bx lr\n")
LAYER(skipped_more, "mov r3, sp\n movs r0, #1\n cmp r0, #0\n itttt eq\n vldreq s0, [sp]\n"
                    "vstreq s0, [sp]\n vldmiaeq r3, {s0, s1}\n vstmiaeq r3, {s0, s1}\n"
                    "ittt eq\n strdeq r0, r1, [sp]\n stmiaeq.w r3, {r0, r1}\n streq r0, [r3, r0]\n"
                    "bx lr\n")
LAYER(arms, "sub sp, #16\n movs r0, #1\n cmp r0, #0\n"
            "ite ne\n ldrne r1, [sp]\n ldreq r2, [sp]\n"
            "itt ne\n ldrne r1, [sp]\n ldrne r2, [sp, #4]\n"
            "ldr r3, [sp]\n"
            "itet ne\n movne r1, #1\n moveq r1, #2\n ldmiane.w sp, {r1, r2, r3}\n"
            "ite eq\n ldreq r1, [sp]\n ldrne r2, [sp]\n"
            "add sp, #16\n bx lr\n")
LAYER(skipped_returns, "movs r0, #1\n cmp r0, #0\n it eq\n bxeq lr\n it eq\n popeq {pc}\n"
                       "it eq\n ldreq pc, [sp]\n it eq\n moveq pc, lr\n"
                       "it eq\n tbbeq [r1, r2]\n bx lr\n")
LAYER(taken_return, "push {lr}\n movs r0, #0\n cmp r0, #0\n itt eq\n moveq r1, #0\n popeq {pc}\n")
LAYER(full_price, "movs r0, #1\n cmp r0, #0\n itt eq\n udiveq r1, r1, r0\n vmlaeq.f32 s0, s1, s2\n"
                  "bx lr\n")
LAYER(floats, "vmov.f32 s0, #1.0\n vmov.f32 s1, s0\n vadd.f32 s2, s0, s1\n vmul.f32 s2, s2, s0\n"
              "vmla.f32 s2, s0, s1\n vmls.f32 s2, s0, s1\n vnmla.f32 s2, s0, s1\n"
              "vfma.f32 s2, s0, s1\n vfnms.f32 s2, s0, s1\n vdiv.f32 s2, s0, s1\n"
              "vsqrt.f32 s2, s0\n vcvt.s32.f32 s2, s0\n vcmp.f32 s0, #0\n"
              "vmrs APSR_nzcv, fpscr\n bx lr\n")
LAYER(float_memory, "sub sp, #16\n mov r3, sp\n vldr s0, [sp]\n vldr d1, [sp]\n vstr s0, [sp]\n"
                    "vstr d1, [sp, #8]\n vldmia r3, {s0-s2}\n vldmia r3!, {d0}\n"
                    "vstmdb r3!, {s0, s1}\n vpush {d8-d9}\n vpop {d8-d9}\n vpush {s16}\n"
                    "vpop {s16}\n add sp, #16\n bx lr\n")
