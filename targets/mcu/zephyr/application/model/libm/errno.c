/* Where the toolchain's libm notes its errors, which nobody reads: Zephyr's minimal C library has
 * another name for it. Weak, for each model of an application brings one. */
int *__errno(void);

__attribute__((weak)) int *__errno(void)
{
    static int number;
    return &number;
}
