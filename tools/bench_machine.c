/*
 * bench_machine.c - see bench_machine.h. Loops hold enough independent sums to fill the pipelines;
 * their results go to a volatile sink, so that no compiler leaves the work out.
 */
#include "bench_machine.h"

#include "cli.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MEMORY_BYTES = 512 << 20, PEAK_ROUNDS = 5000000, RUNS = 4, HUGE_PAGE = 2 << 20 };

static volatile uint64_t sink;

int32_t bench_cpu_count(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

bool bench_machine_open(bench_machine *machine, int32_t threads, const char *isa, bool integer)
{
    *machine =
        (bench_machine){.threads = threads, .bytes = MEMORY_BYTES, .isa = isa, .integer = integer};
    machine->memory = aligned_alloc(HUGE_PAGE, machine->bytes);
    if (machine->memory == NULL) {
        return false;
    }
    /* As the engine asks for its weights: fewer page walks, and prefetch that runs on. */
    madvise(machine->memory, machine->bytes, MADV_HUGEPAGE);
    memset(machine->memory, 1, machine->bytes);
    return true;
}

void bench_machine_close(bench_machine *machine)
{
    free(machine->memory);
    machine->memory = NULL;
}

/* --- threads -----------------------------------------------------------------------------------
 */

typedef void (*work_fn)(const bench_machine *machine, int32_t thread);

typedef struct {
    const bench_machine *machine;
    pthread_barrier_t *barrier;
    work_fn work;
    int32_t thread;
    double started, ended;
} worker;

static void *run_worker(void *context)
{
    worker *self = context;
    pthread_barrier_wait(self->barrier);
    self->started = cli_seconds();
    self->work(self->machine, self->thread);
    self->ended = cli_seconds();
    return NULL;
}

/* Seconds from the first start to the last end; 0 where the threads could not be made. */
static double run_threads(const bench_machine *machine, work_fn work)
{
    const int32_t threads = machine->threads;
    worker *workers = calloc((size_t)threads, sizeof *workers);
    pthread_t *handles = calloc((size_t)threads, sizeof *handles);
    pthread_barrier_t barrier;
    double started = 0, ended = 0;
    if (workers == NULL || handles == NULL ||
        pthread_barrier_init(&barrier, NULL, (unsigned)threads) != 0) {
        goto done;
    }
    /* The barrier needs every thread: one that cannot be made ends the program's usefulness, and
     * thread counts that small machines cannot make are refused by the engine before. */
    for (int32_t i = 0; i < threads; i++) {
        workers[i] = (worker){.machine = machine, .barrier = &barrier, .work = work, .thread = i};
        if (pthread_create(&handles[i], NULL, run_worker, &workers[i]) != 0) {
            abort();
        }
    }
    for (int32_t i = 0; i < threads; i++) {
        pthread_join(handles[i], NULL);
        started = i == 0 || workers[i].started < started ? workers[i].started : started;
        ended = workers[i].ended > ended ? workers[i].ended : ended;
    }
    pthread_barrier_destroy(&barrier);
done:
    free(workers);
    free(handles);
    return ended - started;
}

/* The shortest of a few runs: a limit is what the machine does undisturbed. */
static double run_best(const bench_machine *machine, work_fn work)
{
    double best = 0;
    for (int32_t i = 0; i < RUNS; i++) {
        double seconds = run_threads(machine, work);
        best = i == 0 || seconds < best ? seconds : best;
    }
    return best;
}

/* --- bandwidth ---------------------------------------------------------------------------------
 */

/* Eight words that the compiler keeps in as many vector registers as it needs. */
typedef uint64_t words __attribute__((vector_size(64)));

static void read_memory(const bench_machine *machine, int32_t thread)
{
    const size_t count = machine->bytes / sizeof(words) / (size_t)machine->threads / 4 * 4;
    const words *memory = (const words *)(const void *)machine->memory + count * (size_t)thread;
    words sums[4] = {{0}};
    for (size_t i = 0; i < count; i += 4) {
        sums[0] += memory[i];
        sums[1] += memory[i + 1];
        sums[2] += memory[i + 2];
        sums[3] += memory[i + 3];
    }
    words sum = sums[0] + sums[1] + sums[2] + sums[3];
    sink += sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

double bench_machine_bandwidth(const bench_machine *machine)
{
    double seconds = run_best(machine, read_memory);
    return seconds > 0 ? (double)machine->bytes / seconds : 0;
}

/* --- arithmetic --------------------------------------------------------------------------------
 */

/* One way to multiply and add: a round does `multiply_adds` of them. */
typedef struct {
    const char *isa;
    bool integer;
    const char *name;
    work_fn work;
    double multiply_adds;
} peak_row;

enum { SCALAR_COUNT = 512, SCALAR_ROUNDS = PEAK_ROUNDS / SCALAR_COUNT };
enum { FLOAT_COUNT = 8, FLOAT_ROUNDS = PEAK_ROUNDS / FLOAT_COUNT };

static void peak_scalar_integer(const bench_machine *machine, int32_t thread)
{
    int16_t a[SCALAR_COUNT], b[SCALAR_COUNT];
    (void)machine;
    memset(a, thread + 1, sizeof a);
    memset(b, 1, sizeof b);
    int32_t sum = 0;
    for (int32_t round = 0; round < SCALAR_ROUNDS; round++) {
        __asm__ volatile("" : : "r"(a), "r"(b) : "memory");
        for (int32_t i = 0; i < SCALAR_COUNT; i++) {
            sum = (int32_t)((uint32_t)sum + (uint32_t)(a[i] * b[i]));
        }
    }
    sink += (uint64_t)(uint32_t)sum;
}

static void peak_scalar_float(const bench_machine *machine, int32_t thread)
{
    float sums[FLOAT_COUNT] = {0}, x = (float)thread, y = 0.5f;
    (void)machine;
    for (int32_t round = 0; round < FLOAT_ROUNDS; round++) {
        __asm__ volatile("" : "+m"(x), "+m"(y));
        for (int32_t i = 0; i < FLOAT_COUNT; i++) {
            sums[i] += x * y;
        }
    }
    sink +=
        (uint64_t)(sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7]);
}

#if defined(__x86_64__)
/* Latency times throughput of the instructions below, with room; what adds in one cycle needs few,
 * and they must all fit the 16 registers of AVX2. */
enum { SUMS = 10, FEW_SUMS = 6 };

__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void
peak_avx512_integer(const bench_machine *machine, int32_t thread)
{
    __m512i sums[SUMS], a = _mm512_set1_epi16((short)(thread + 1)), b = _mm512_set1_epi16(1);
    (void)machine;
    for (int32_t i = 0; i < SUMS; i++) {
        sums[i] = _mm512_setzero_si512();
    }
    for (int32_t round = 0; round < PEAK_ROUNDS; round++) {
        __asm__ volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
        for (int32_t i = 0; i < SUMS; i++) {
            sums[i] = _mm512_dpwssd_epi32(sums[i], a, b);
        }
    }
    for (int32_t i = 1; i < SUMS; i++) {
        sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    }
    sink += (uint64_t)_mm512_reduce_add_epi32(sums[0]);
}

__attribute__((target("avx512f"))) static void peak_avx512_float(const bench_machine *machine,
                                                                 int32_t thread)
{
    __m512 sums[SUMS], a = _mm512_set1_ps((float)thread), b = _mm512_set1_ps(0.5f);
    (void)machine;
    for (int32_t i = 0; i < SUMS; i++) {
        sums[i] = _mm512_setzero_ps();
    }
    for (int32_t round = 0; round < PEAK_ROUNDS; round++) {
        __asm__ volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
        for (int32_t i = 0; i < SUMS; i++) {
            sums[i] = _mm512_fmadd_ps(a, b, sums[i]);
        }
    }
    for (int32_t i = 1; i < SUMS; i++) {
        sums[0] = _mm512_add_ps(sums[0], sums[i]);
    }
    sink += (uint64_t)_mm512_reduce_add_ps(sums[0]);
}

__attribute__((target("avx2"))) static void peak_avx2_integer(const bench_machine *machine,
                                                              int32_t thread)
{
    __m256i sums[FEW_SUMS], a = _mm256_set1_epi16((short)(thread + 1)), b = _mm256_set1_epi16(1);
    (void)machine;
    for (int32_t i = 0; i < FEW_SUMS; i++) {
        sums[i] = _mm256_setzero_si256();
    }
    for (int32_t round = 0; round < PEAK_ROUNDS; round++) {
#pragma GCC unroll 16
        for (int32_t i = 0; i < FEW_SUMS; i++) {
            /* Without the barrier one product would do for all sums. */
            __asm__ volatile("" : "+x"(a));
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(a, b));
        }
    }
    for (int32_t i = 1; i < FEW_SUMS; i++) {
        sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    }
    sink += (uint64_t)_mm256_extract_epi64(sums[0], 0);
}

__attribute__((target("avx2,fma"))) static void peak_avx2_float(const bench_machine *machine,
                                                                int32_t thread)
{
    __m256 sums[SUMS], a = _mm256_set1_ps((float)thread), b = _mm256_set1_ps(0.5f);
    (void)machine;
    for (int32_t i = 0; i < SUMS; i++) {
        sums[i] = _mm256_setzero_ps();
    }
    for (int32_t round = 0; round < PEAK_ROUNDS; round++) {
        __asm__ volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 16
        for (int32_t i = 0; i < SUMS; i++) {
            sums[i] = _mm256_fmadd_ps(a, b, sums[i]);
        }
    }
    for (int32_t i = 1; i < SUMS; i++) {
        sums[0] = _mm256_add_ps(sums[0], sums[i]);
    }
    sink += (uint64_t)_mm256_cvtss_f32(sums[0]);
}
#endif

/* The first row for an instruction set and kind of number is the one; scalar rows end the table. */
static const peak_row peaks[] = {
#if defined(__x86_64__)
    {"avx512", true, "int16 vpdpwssd, 512 bit", peak_avx512_integer,
     (double)SUMS * 32 * PEAK_ROUNDS},
    {"avx512", false, "F32 vfmadd, 512 bit", peak_avx512_float, (double)SUMS * 16 * PEAK_ROUNDS},
    {"avx2", true, "int16 vpmaddwd + vpaddd, 256 bit", peak_avx2_integer,
     (double)FEW_SUMS * 16 * PEAK_ROUNDS},
    {"avx2", false, "F32 vfmadd, 256 bit", peak_avx2_float, (double)SUMS * 8 * PEAK_ROUNDS},
#endif
    {"scalar", true, "int16, compiled C", peak_scalar_integer, (double)SCALAR_ROUNDS *SCALAR_COUNT},
    {"scalar", false, "F32, compiled C", peak_scalar_float, (double)FLOAT_ROUNDS *FLOAT_COUNT},
};

static const peak_row *find_peak(const bench_machine *machine)
{
    const size_t count = sizeof peaks / sizeof peaks[0];
    for (size_t i = 0; i < count; i++) {
        if (peaks[i].integer == machine->integer && strcmp(peaks[i].isa, machine->isa) == 0) {
            return &peaks[i];
        }
    }
    return &peaks[machine->integer ? count - 2 : count - 1];
}

double bench_machine_peak(const bench_machine *machine)
{
    const peak_row *row = find_peak(machine);
    double seconds = run_best(machine, row->work);
    return seconds > 0 ? row->multiply_adds * machine->threads / seconds : 0;
}

const char *bench_machine_peak_name(const bench_machine *machine)
{
    return find_peak(machine)->name;
}
