/* The selective scan and the causal convolution on a CPU: forward and backward, float32, rows of channels.
 *
 *     b batch · l tokens · d channels · n state size · k taps of the convolution
 *
 * Channels are independent of each other but for the gradients of B and C, so the work is cut into items of (one batch
 * row, GROUP channels). Inside an item every loop over channels runs over exactly GROUP of them, padded with zeros,
 * which the compiler turns into vector code; the recurrence over tokens stays sequential. Threads take whole items, as
 * they become free (another program may hold one of the cores), and write to places of their own; sums over items come
 * afterwards, in a fixed order, so the same input gives the same bits, whichever thread did what.
 *
 * The training forward keeps the state every CHUNK tokens. The backward walks the chunks from the last to the first,
 * recomputes the states inside one from the state kept before it, and then goes through its tokens in reverse.
 *
 * Every kernel has a twin, `<name>_scratch`, that takes the same sizes and tells how many floats of scratch it needs.
 * Nothing here needs -ffast-math: a NaN that goes in comes out. GROUP and CHUNK are given by cpu.py with -D.
 *
 * compiler.py compiles this file once for each instruction set and links the objects into one library. ISA (-D) is the
 * set's name and ends every exported name. emrrg_runs_<ISA> tells whether this processor can run the others of that name.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define JOINED(name, isa) name##_##isa
#define JOIN(name, isa) JOINED(name, isa)
#define EXPORT(name) JOIN(name, ISA)

int EXPORT(emrrg_runs)(void) {
#if defined(__x86_64__) && defined(__AVX512F__)
    return __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#elif defined(__x86_64__) && defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 1;   /* what every processor of this architecture has */
#endif
}

static int my_thread(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static long least(long a, long b) { return a < b ? a : b; }
static long groups_of(long d) { return (d + GROUP - 1) / GROUP; }
static long chunks_of(long l) { return (l + CHUNK - 1) / CHUNK; }

/* e^x with a relative error below 2e-7, and no branch, so that it can be vectorised. e^x is 2^whole · e^part with
 * |part| <= ln(2)/2; the polynomial is our own fit (relative error 9e-8, exactly 1 at 0). Below -88.03 the answer is 0,
 * above 88.38 infinity; a NaN fails both comparisons, passes through the polynomial and stays a NaN. */
static inline float exponential(float x) {
    const float log2_e = 1.44269504f, rounder = 12582912.0f;           /* 1.5 · 2^23: adding it rounds to integers */
    const float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;    /* whole · ln2_high is exact */
    x = x < -88.029692f ? -88.029692f : x;                             /* whole = -127: a scale of 0 */
    x = x > 88.722839f ? 88.722839f : x;                               /* whole = 128: a scale of infinity */
    float rounded = x * log2_e + rounder;
    float whole = rounded - rounder;
    float part = (x - whole * ln2_high) - whole * ln2_low;
    float power = 8.290272206e-3f;
    power = power * part + 4.189816117e-2f;
    power = power * part + 1.666763872e-1f;
    power = power * part + 4.999914765e-1f;
    power = power * part + 9.999997020e-1f;
    power = power * part + 1.0f;
    uint32_t bits;
    float scale;
    memcpy(&bits, &rounded, sizeof bits);
    bits = (bits - 0x4B400000u + 127u) << 23;                          /* whole, moved to the exponent's place */
    memcpy(&scale, &bits, sizeof scale);
    return power * scale;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* One row of an item: GROUP channels where there are so many, else `width` channels copied to `spare` and then zeros. A
 * zero channel stays zero everywhere. */
static inline const float *row_at(const float *from, float *restrict spare, long width) {
    if (width == GROUP) return from;
    memset(spare, 0, GROUP * sizeof(float));
    memcpy(spare, from, (size_t)width * sizeof(float));
    return spare;
}

/* (GROUP channels, columns) in memory, channels first, to (columns, GROUP). */
static void load_transposed(float *restrict tile, const float *restrict from, long columns, long width) {
    for (long j = 0; j < columns; j++)
        for (long c = 0; c < GROUP; c++) tile[j * GROUP + c] = c < width ? from[c * columns + j] : 0.0f;
}

/* ---------------------------------------------------------------------------------------------- selective scan --- */

/* (b, groups, columns, GROUP), padded, summed over b into (d, columns) */
static void sum_items(const float *restrict parts, float *restrict sums, long b, long d, long columns) {
    const long groups = groups_of(d);
#pragma omp for schedule(static)
    for (long group = 0; group < groups; group++)
        for (long j = 0; j < columns; j++) {
            float sum[GROUP] = {0.0f};
            for (long batch = 0; batch < b; batch++)
                for (long c = 0; c < GROUP; c++) sum[c] += parts[((batch * groups + group) * columns + j) * GROUP + c];
            for (long c = 0; c < least(GROUP, d - group * GROUP); c++) sums[(group * GROUP + c) * columns + j] = sum[c];
        }
}

/* (groups, rows, n) summed over groups into (rows, n) */
static void sum_groups(const float *restrict parts, float *restrict sums, long groups, long rows, long n) {
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++) {
        memcpy(sums + row * n, parts + row * n, (size_t)n * sizeof(float));
        for (long group = 1; group < groups; group++)
            for (long j = 0; j < n; j++) sums[row * n + j] += parts[(group * rows + row) * n + j];
    }
}

long EXPORT(emrrg_scan_forward_scratch)(long b, long l, long d, long n, int threads) {
    (void)b, (void)l, (void)d;
    return threads * 2 * n * GROUP;
}

/* y (b, l, d); states (b, groups, chunks, n, GROUP), the state before each chunk's first token, or NULL. */
void EXPORT(emrrg_scan_forward)(long b, long l, long d, long n, const float *u, const float *delta, const float *A,
                        const float *B, const float *C, const float *D, float *y, float *states, float *scratch,
                        int threads) {
    const long groups = groups_of(d), chunks = chunks_of(l), tile = n * GROUP;
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long item = 0; item < b * groups; item++) {
        const long batch = item / groups, group = item % groups, first = group * GROUP, width = least(GROUP, d - first);
        float *restrict rates = scratch + my_thread() * 2 * tile;
        float *restrict state = rates + tile;
        float spare[3][GROUP], input[GROUP], out[GROUP];
        const float *skip = row_at(D + first, spare[0], width);
        load_transposed(rates, A + first * n, n, width);
        memset(state, 0, (size_t)tile * sizeof(float));
        for (long t = 0; t < l; t++) {
            const long at = (batch * l + t) * d + first;
            const float *Bt = B + (batch * l + t) * n, *Ct = C + (batch * l + t) * n;
            if (states && t % CHUNK == 0)
                memcpy(states + (item * chunks + t / CHUNK) * tile, state, (size_t)tile * sizeof(float));
            const float *step = row_at(delta + at, spare[1], width), *x = row_at(u + at, spare[2], width);
#pragma omp simd
            for (long c = 0; c < GROUP; c++) {
                input[c] = step[c] * x[c];
                out[c] = skip[c] * x[c];
            }
            for (long j = 0; j < n; j++) {
                const float Btj = Bt[j], Ctj = Ct[j];
                float *restrict h = state + j * GROUP;
                const float *restrict rate = rates + j * GROUP;
#pragma omp simd
                for (long c = 0; c < GROUP; c++) {
                    float now = exponential(step[c] * rate[c]) * h[c] + input[c] * Btj;
                    h[c] = now;
                    out[c] += now * Ctj;
                }
            }
            memcpy(y + at, out, (size_t)width * sizeof(float));
        }
    }
}

/* per thread: rates, carry, CHUNK + 1 states, CHUNK decays; per item: dA, dD and the rows of dB and dC */
long EXPORT(emrrg_scan_backward_scratch)(long b, long l, long d, long n, int threads) {
    return threads * (2 * CHUNK + 3) * n * GROUP + b * groups_of(d) * ((n + 1) * GROUP + 2 * l * n);
}

/* The gradients of u and delta (b, l, d), A (d, n), B and C (b, l, n) and D (d), from that of y, and the states that
 * the forward kept. */
void EXPORT(emrrg_scan_backward)(long b, long l, long d, long n, const float *u, const float *delta, const float *A,
                         const float *B, const float *C, const float *D, const float *states, const float *dy,
                         float *du, float *ddelta, float *dA, float *dB, float *dC, float *dD, float *scratch,
                         int threads) {
    const long groups = groups_of(d), chunks = chunks_of(l), tile = n * GROUP;
    float *dA_parts = scratch + threads * (2 * CHUNK + 3) * tile;   /* (b, groups, n, GROUP) */
    float *dD_parts = dA_parts + b * groups * tile;                 /* (b, groups, 1, GROUP) */
    float *dB_parts = dD_parts + b * groups * GROUP;                /* (groups, b, l, n) */
    float *dC_parts = dB_parts + b * groups * l * n;                /* (groups, b, l, n) */
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (long item = 0; item < b * groups; item++) {
            const long batch = item / groups, group = item % groups;
            const long first = group * GROUP, width = least(GROUP, d - first);
            float *restrict rates = scratch + my_thread() * (2 * CHUNK + 3) * tile;
            float *restrict carry = rates + tile;       /* the gradient of h[t] that comes from the tokens after t */
            float *restrict held = carry + tile;        /* h before token 0 .. CHUNK of the chunk */
            float *restrict decays = held + (CHUNK + 1) * tile;   /* exp(delta·A) of each token of the chunk */
            float *restrict slopes = dA_parts + item * tile;
            float *restrict skips = dD_parts + item * GROUP;
            float spare[4][GROUP], input[GROUP], to_input[GROUP], to_step[GROUP], out[GROUP];
            const float *skip = row_at(D + first, spare[0], width);
            load_transposed(rates, A + first * n, n, width);
            memset(carry, 0, (size_t)tile * sizeof(float));
            memset(slopes, 0, (size_t)tile * sizeof(float));
            memset(skips, 0, GROUP * sizeof(float));
            for (long chunk = chunks - 1; chunk >= 0; chunk--) {
                const long start = chunk * CHUNK, tokens = least(CHUNK, l - start);
                memcpy(held, states + (item * chunks + chunk) * tile, (size_t)tile * sizeof(float));
                for (long i = 0; i < tokens; i++) {
                    const long row = batch * l + start + i;
                    const float *step = row_at(delta + row * d + first, spare[1], width);
                    const float *x = row_at(u + row * d + first, spare[2], width);
#pragma omp simd
                    for (long c = 0; c < GROUP; c++) input[c] = step[c] * x[c];
                    for (long j = 0; j < n; j++) {
                        const float Btj = B[row * n + j];
                        const float *restrict rate = rates + j * GROUP;
                        const float *restrict before = held + i * tile + j * GROUP;
                        float *restrict after = held + (i + 1) * tile + j * GROUP;
                        float *restrict decay = decays + i * tile + j * GROUP;
#pragma omp simd
                        for (long c = 0; c < GROUP; c++) {
                            decay[c] = exponential(step[c] * rate[c]);
                            after[c] = decay[c] * before[c] + input[c] * Btj;
                        }
                    }
                }
                for (long i = tokens - 1; i >= 0; i--) {
                    const long row = batch * l + start + i, at = row * d + first;
                    float *dBt = dB_parts + (group * b * l + row) * n, *dCt = dC_parts + (group * b * l + row) * n;
                    const float *step = row_at(delta + at, spare[1], width), *x = row_at(u + at, spare[2], width);
                    const float *up = row_at(dy + at, spare[3], width);
#pragma omp simd
                    for (long c = 0; c < GROUP; c++) {
                        input[c] = step[c] * x[c];
                        to_input[c] = to_step[c] = 0.0f;
                        skips[c] += up[c] * x[c];
                    }
                    for (long j = 0; j < n; j++) {
                        const float Btj = B[row * n + j], Ctj = C[row * n + j];
                        const float *restrict rate = rates + j * GROUP;
                        const float *restrict decay = decays + i * tile + j * GROUP;
                        const float *restrict before = held + i * tile + j * GROUP;
                        const float *restrict after = held + (i + 1) * tile + j * GROUP;
                        float *restrict later = carry + j * GROUP, *restrict dAj = slopes + j * GROUP;
                        float dBtj = 0.0f, dCtj = 0.0f;
#pragma omp simd reduction(+ : dBtj, dCtj)
                        for (long c = 0; c < GROUP; c++) {
                            float g = later[c] + Ctj * up[c];   /* the gradient of h[t] */
                            float faded = g * decay[c];
                            float slope = faded * before[c];    /* the gradient of delta[t]·A */
                            later[c] = faded;
                            dAj[c] += slope * step[c];
                            to_step[c] += slope * rate[c];
                            to_input[c] += g * Btj;
                            dBtj += g * input[c];
                            dCtj += up[c] * after[c];
                        }
                        dBt[j] = dBtj;
                        dCt[j] = dCtj;
                    }
#pragma omp simd
                    for (long c = 0; c < GROUP; c++) {
                        out[c] = skip[c] * up[c] + to_input[c] * step[c];
                        to_step[c] += to_input[c] * x[c];
                    }
                    memcpy(du + at, out, (size_t)width * sizeof(float));
                    memcpy(ddelta + at, to_step, (size_t)width * sizeof(float));
                }
            }
        }
        sum_items(dA_parts, dA, b, d, n);
        sum_items(dD_parts, dD, b, d, 1);
        sum_groups(dB_parts, dB, groups, b * l, n);
        sum_groups(dC_parts, dC, groups, b * l, n);
    }
}

/* ------------------------------------------------------------------------------- causal convolution, then SiLU --- */

long EXPORT(emrrg_conv_forward_scratch)(long b, long l, long d, long k, int threads) {
    (void)b, (void)l, (void)d;
    return threads * k * GROUP;
}

/* per thread: taps and the last k gradients of z; per item: dweight and dbias */
long EXPORT(emrrg_conv_backward_scratch)(long b, long l, long d, long k, int threads) {
    (void)l;
    return threads * 2 * k * GROUP + b * groups_of(d) * (k + 1) * GROUP;
}

/* z[t] = bias + sum over taps j of weight[j] · x[t - (k - 1) + j], for one item; before token 0 x is zero */
static inline void convolve(long t, long d, long k, long width, const float *x, const float *restrict taps,
                            const float *restrict bias, float *restrict z) {
    float spare[GROUP];
    memcpy(z, bias, GROUP * sizeof(float));
    for (long j = t < k - 1 ? k - 1 - t : 0; j < k; j++) {
        const float *restrict row = row_at(x + (t - (k - 1) + j) * d, spare, width), *restrict tap = taps + j * GROUP;
#pragma omp simd
        for (long c = 0; c < GROUP; c++) z[c] += tap[c] * row[c];
    }
}

/* y (b, l, d) = z · sigmoid(z) */
void EXPORT(emrrg_conv_forward)(long b, long l, long d, long k, const float *x, const float *weight, const float *bias,
                        float *y, float *scratch, int threads) {
    const long groups = groups_of(d);
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long item = 0; item < b * groups; item++) {
        const long batch = item / groups, first = item % groups * GROUP, width = least(GROUP, d - first);
        float *restrict taps = scratch + my_thread() * k * GROUP;
        float spare[GROUP], z[GROUP];
        const float *shift = row_at(bias + first, spare, width);
        load_transposed(taps, weight + first * k, k, width);
        for (long t = 0; t < l; t++) {
            convolve(t, d, k, width, x + batch * l * d + first, taps, shift, z);
#pragma omp simd
            for (long c = 0; c < GROUP; c++) z[c] *= sigmoid(z[c]);
            memcpy(y + (batch * l + t) * d + first, z, (size_t)width * sizeof(float));
        }
    }
}

/* The gradients of x (b, l, d), weight (d, k) and bias (d), from that of y. */
void EXPORT(emrrg_conv_backward)(long b, long l, long d, long k, const float *x, const float *weight, const float *bias,
                         const float *dy, float *dx, float *dweight, float *dbias, float *scratch, int threads) {
    const long groups = groups_of(d);
    float *dweight_parts = scratch + threads * 2 * k * GROUP;           /* (b, groups, k, GROUP) */
    float *dbias_parts = dweight_parts + b * groups * k * GROUP;        /* (b, groups, 1, GROUP) */
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (long item = 0; item < b * groups; item++) {
            const long batch = item / groups, first = item % groups * GROUP, width = least(GROUP, d - first);
            const float *rows = x + batch * l * d + first;
            float *restrict taps = scratch + my_thread() * 2 * k * GROUP;
            float *restrict recent = taps + k * GROUP;        /* the gradient of z[t], in row t modulo k */
            float *restrict dtaps = dweight_parts + item * k * GROUP;
            float *restrict dshift = dbias_parts + item * GROUP;
            float spare[2][GROUP], z[GROUP], out[GROUP];
            const float *shift = row_at(bias + first, spare[0], width);
            load_transposed(taps, weight + first * k, k, width);
            memset(dtaps, 0, (size_t)(k * GROUP) * sizeof(float));
            memset(dshift, 0, GROUP * sizeof(float));
            for (long t = 0; t < l + k - 1; t++) {
                float *restrict dz = recent + t % k * GROUP;
                if (t >= l) {
                    memset(dz, 0, GROUP * sizeof(float));     /* after the last token */
                } else {
                    const float *up = row_at(dy + (batch * l + t) * d + first, spare[1], width);
                    convolve(t, d, k, width, rows, taps, shift, z);
#pragma omp simd
                    for (long c = 0; c < GROUP; c++) {
                        float s = sigmoid(z[c]);
                        dz[c] = up[c] * s * (1.0f + z[c] * (1.0f - s));
                        dshift[c] += dz[c];
                    }
                    for (long j = t < k - 1 ? k - 1 - t : 0; j < k; j++) {
                        const float *restrict row = row_at(rows + (t - (k - 1) + j) * d, spare[1], width);
                        float *restrict dtap = dtaps + j * GROUP;
#pragma omp simd
                        for (long c = 0; c < GROUP; c++) dtap[c] += row[c] * dz[c];
                    }
                }
                if (t < k - 1) continue;
                memset(out, 0, sizeof out);                   /* x[t - (k - 1)] reaches z up to z[t] */
                for (long j = 0; j < k; j++) {
                    const float *restrict later = recent + (t - j) % k * GROUP, *restrict tap = taps + j * GROUP;
#pragma omp simd
                    for (long c = 0; c < GROUP; c++) out[c] += tap[c] * later[c];
                }
                memcpy(dx + (batch * l + t - (k - 1)) * d + first, out, (size_t)width * sizeof(float));
            }
        }
        sum_items(dweight_parts, dweight, b, d, k);
        sum_items(dbias_parts, dbias, b, d, 1);
    }
}
