/*
 * bench_machine.h - what the machine can do at most, measured by loops of our own: how fast threads
 * stream memory, and how fast they multiply and add in the instructions that the kernels use.
 */
#ifndef XMOE_TOOLS_BENCH_MACHINE_H
#define XMOE_TOOLS_BENCH_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    int32_t threads;
    uint64_t *memory; /* bytes of it, shared out among the threads */
    size_t bytes;
    const char *isa;
    bool integer; /* peak of int16 dot products (Q8_0, Q4_0), else of F32 multiply-adds */
} bench_machine;

/* CPUs that this process may use. */
int32_t bench_cpu_count(void);

/* Allocates and touches the memory; false where there is not enough. */
bool bench_machine_open(bench_machine *machine, int32_t threads, const char *isa, bool integer);
void bench_machine_close(bench_machine *machine);

/* Bytes per second of all threads reading their part of the memory once, front to back. */
double bench_machine_bandwidth(const bench_machine *machine);
/* Multiply-adds per second of all threads from registers. */
double bench_machine_peak(const bench_machine *machine);
/* What bench_machine_peak runs, for people: "vpdpwssd, 512 bit". */
const char *bench_machine_peak_name(const bench_machine *machine);

#endif
