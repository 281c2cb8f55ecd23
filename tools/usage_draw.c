/*
 * usage_draw.c - see usage_draw.h. Lengths are CSS pixels; cells are whole ones, so that edges are
 * sharp. Nothing outside the file is referred to.
 */
#include "usage_draw.h"

#include "json.h"
#include "usage_report.h"

#include <math.h>
#include <string.h>

enum {
    LEFT = 64,    /* labels of the layers */
    RIGHT = 116,  /* a figure per layer */
    TOP = 72,     /* title, head of the figures */
    BOTTOM = 104, /* labels of the experts, legend */
    LEAST_WIDTH = 640,
    FONT = 12,
    LEGEND_WIDTH = 240
};

typedef struct {
    unsigned char red, green, blue;
} colour;

/* From light to dark: lightness falls evenly, so that it carries the order by itself. */
static const colour sequential[] = {
    {247, 251, 240}, {208, 232, 214}, {149, 207, 200}, {88, 172, 194},
    {45, 128, 180},  {36, 84, 148},   {24, 40, 94},
};
/* From fallen to grown: orange and blue, the pair that all kinds of colour vision tell apart. */
static const colour diverging[] = {
    {160, 70, 0},    {226, 138, 58}, {250, 205, 160}, {248, 248, 248},
    {170, 205, 236}, {78, 142, 204}, {16, 74, 140},
};

typedef struct {
    FILE *out;
    const xmoe_usage *a, *b; /* b: NULL where one is drawn */
    int32_t experts;         /* columns */
    int32_t cell_width, cell_height;
    int32_t width, height; /* of the picture */
    double most;           /* value of the palette's end; its start is 0, or -most for two */
} drawing;

/* --- text and colours --------------------------------------------------------------------------
 */

/* What XML cannot hold becomes U+FFFD. */
static void put_text(FILE *out, const char *text)
{
    size_t length = strlen(text);
    for (size_t i = 0; i < length;) {
        size_t bytes = json_utf8_length(text + i, length - i);
        if (bytes == 0 || (unsigned char)text[i] < 0x20 || text[i] == 0x7F ||
            memcmp(text + i, "\xEF\xBF\xBE", bytes == 3 ? 3 : 1) == 0 ||
            memcmp(text + i, "\xEF\xBF\xBF", bytes == 3 ? 3 : 1) == 0) {
            fputs("\xEF\xBF\xBD", out);
            bytes = bytes > 0 ? bytes : 1;
        } else if (strchr("&<>\"", text[i]) != NULL) {
            fprintf(out, "&#%d;", text[i]);
        } else {
            fwrite(text + i, 1, bytes, out);
        }
        i += bytes;
    }
}

static unsigned mix(unsigned from, unsigned to, double part)
{
    return (unsigned)lround(from + part * ((double)to - from));
}

/* Colour at part (0 to 1) of a palette, as #rrggbb. */
static const char *palette_at(const drawing *map, double part, char text[8])
{
    const bool two = map->b != NULL;
    const colour *palette = two ? diverging : sequential;
    const int last =
        (int)(two ? sizeof diverging / sizeof *diverging : sizeof sequential / sizeof *sequential) -
        1;
    double at = fmin(fmax(part, 0), 1) * last;
    int index = at < last ? (int)at : last - 1;
    const colour *from = &palette[index], *to = from + 1;
    snprintf(text, 8, "#%02x%02x%02x", mix(from->red, to->red, at - index),
             mix(from->green, to->green, at - index), mix(from->blue, to->blue, at - index));
    return text;
}

/* --- values ------------------------------------------------------------------------------------
 */

static double value_of(const drawing *map, int32_t row, int32_t expert)
{
    double share = usage_share(&map->a->layers[row], expert);
    return map->b == NULL ? share : usage_share(&map->b->layers[row], expert) - share;
}

/* True where there is nothing to show: an expert that was never taken. */
static bool is_dead(const drawing *map, int32_t row, int32_t expert)
{
    return map->a->layers[row].counts[expert] == 0 &&
           (map->b == NULL || map->b->layers[row].counts[expert] == 0);
}

static void find_scale(drawing *map)
{
    map->most = 0;
    for (int32_t row = 0; row < map->a->layer_count; row++) {
        for (int32_t e = 0; e < map->experts; e++) {
            map->most = fmax(map->most, fabs(value_of(map, row, e)));
        }
    }
    if (map->most <= 0) {
        map->most = 1;
    }
}

static int32_t within(int32_t value, int32_t least, int32_t most)
{
    return value < least ? least : value > most ? most : value;
}

static void lay_out(drawing *map)
{
    const int32_t rows = map->a->layer_count;
    map->experts = rows > 0 ? map->a->layers[0].experts : 0;
    map->cell_width = within(1024 / (map->experts > 0 ? map->experts : 1), 3, 24);
    map->cell_height = within(640 / (rows > 0 ? rows : 1), 10, 28);
    int32_t width = LEFT + map->experts * map->cell_width + RIGHT;
    map->width = width > LEAST_WIDTH ? width : LEAST_WIDTH;
    map->height = TOP + rows * map->cell_height + BOTTOM;
    find_scale(map);
}

/* --- parts of the picture ----------------------------------------------------------------------
 */

static void draw_label(const drawing *map, double x, double y, const char *anchor, const char *text)
{
    fprintf(map->out, "<text x=\"%g\" y=\"%g\" text-anchor=\"%s\">", x, y, anchor);
    put_text(map->out, text);
    fputs("</text>\n", map->out);
}

static void draw_head(const drawing *map, const char *title)
{
    FILE *out = map->out;
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "viewBox=\"0 0 %d %d\" role=\"img\" font-family=\"sans-serif\" font-size=\"%d\" "
            "fill=\"#222\">\n<title>",
            map->width, map->height, map->width, map->height, FONT);
    put_text(out, title);
    fprintf(out,
            "</title>\n<desc>%s of each expert (columns) in each MoE layer (rows).</desc>\n"
            "<defs>\n<pattern id=\"dead\" width=\"4\" height=\"4\" "
            "patternUnits=\"userSpaceOnUse\"><rect width=\"4\" height=\"4\" fill=\"#fff\"/>"
            "<path d=\"M-1 1l2-2M0 4l4-4M3 5l2-2\" stroke=\"#b0b0b0\"/></pattern>\n"
            "<linearGradient id=\"scale\">",
            map->b == NULL ? "Share of the activations" : "Change of the share of the activations");
    for (int stop = 0; stop <= 12; stop++) {
        char text[8];
        fprintf(out, "<stop offset=\"%g\" stop-color=\"%s\"/>", stop / 12.0,
                palette_at(map, stop / 12.0, text));
    }
    fputs("</linearGradient>\n</defs>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
          "<g font-size=\"16\" font-weight=\"bold\">",
          out);
    draw_label(map, LEFT, 26, "start", title);
    fputs("</g>\n", out);
}

/* Steps of 1, 2, 4, ... so that labels are at least `room` apart. */
static int32_t label_step(int32_t cell, int32_t room)
{
    int32_t step = 1;
    while (step * cell < room) {
        step *= 2;
    }
    return step;
}

static void draw_axes(const drawing *map)
{
    const xmoe_usage *a = map->a, *b = map->b;
    const double right = LEFT + map->experts * map->cell_width;
    const double bottom = TOP + a->layer_count * map->cell_height;
    char text[48];
    const int32_t rows = label_step(map->cell_height, FONT);
    for (int32_t row = 0; row < a->layer_count; row += rows) {
        double y = TOP + (row + 0.5) * map->cell_height + 0.35 * FONT;
        snprintf(text, sizeof text, "%d", a->layers[row].layer);
        draw_label(map, LEFT - 8, y, "end", text);
        double figure = b == NULL ? a->layers[row].mean_active
                                  : xmoe_usage_divergence(&a->layers[row], &b->layers[row]);
        snprintf(text, sizeof text, b == NULL ? "%.2f" : "%.4f", figure);
        draw_label(map, right + 8, y, "start", isnan(figure) ? "-" : text);
    }
    draw_label(map, right + 8, TOP - 10, "start",
               b == NULL ? "experts per token" : "divergence, bits");
    const int32_t digits = snprintf(NULL, 0, "%d", map->experts);
    const int32_t columns = label_step(map->cell_width, (digits + 1) * FONT * 2 / 3);
    for (int32_t e = 0; e < map->experts; e += columns) {
        snprintf(text, sizeof text, "%d", e);
        draw_label(map, LEFT + (e + 0.5) * map->cell_width, bottom + 16, "middle", text);
    }
    draw_label(map, LEFT, bottom + 34, "start", "expert");
    draw_label(map, LEFT - 8, TOP - 10, "end", "layer");
}

static void draw_tooltip(const drawing *map, int32_t row, int32_t expert)
{
    const xmoe_layer_usage *a = &map->a->layers[row];
    fprintf(map->out, "<title>layer %d, expert %d: %.2f%%", a->layer, expert,
            100 * usage_share(a, expert));
    if (map->b == NULL) {
        fprintf(map->out, " (%llu of %llu)", (unsigned long long)a->counts[expert],
                (unsigned long long)a->activations);
    } else {
        fprintf(map->out, " to %.2f%%", 100 * usage_share(&map->b->layers[row], expert));
    }
    fputs("</title>", map->out);
}

static void draw_cells(const drawing *map)
{
    const int32_t gap = map->cell_width >= 6 ? 1 : 0;
    fputs("<g shape-rendering=\"crispEdges\">\n", map->out);
    for (int32_t row = 0; row < map->a->layer_count; row++) {
        for (int32_t e = 0; e < map->experts; e++) {
            char text[8];
            double value = value_of(map, row, e) / map->most;
            palette_at(map, map->b == NULL ? value : (value + 1) / 2, text);
            fprintf(map->out, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\">",
                    LEFT + e * map->cell_width, TOP + row * map->cell_height, map->cell_width - gap,
                    map->cell_height - gap, is_dead(map, row, e) ? "url(#dead)" : text);
            draw_tooltip(map, row, e);
            fputs("</rect>\n", map->out);
        }
    }
    fputs("</g>\n", map->out);
}

static void draw_legend(const drawing *map)
{
    const double y = TOP + map->a->layer_count * map->cell_height + 50;
    const bool two = map->b != NULL;
    fprintf(map->out,
            "<rect x=\"%d\" y=\"%g\" width=\"%d\" height=\"12\" fill=\"url(#scale)\" "
            "stroke=\"#888\" stroke-width=\"0.5\"/>\n",
            LEFT, y, LEGEND_WIDTH);
    for (int tick = 0; tick <= 2; tick++) {
        char text[32];
        double value = 100 * map->most * (two ? tick - 1 : tick / 2.0);
        snprintf(text, sizeof text, two ? "%+.2g" : "%.2g%%", value);
        draw_label(map, LEFT + LEGEND_WIDTH / 2.0 * tick, y + 27, "middle",
                   value == 0 ? "0" : text);
    }
    const double after = LEFT + LEGEND_WIDTH + 36;
    draw_label(map, after, y + 11, "start",
               two ? "change of share, percentage points" : "share of the layer's activations");
    fprintf(map->out,
            "<rect x=\"%g\" y=\"%g\" width=\"14\" height=\"12\" fill=\"url(#dead)\" "
            "stroke=\"#888\" stroke-width=\"0.5\"/>\n",
            after, y + 18);
    draw_label(map, after + 20, y + 28, "start", two ? "dead in both" : "dead: never taken");
}

void usage_draw(FILE *out, const char *title, const xmoe_usage *a, const xmoe_usage *b)
{
    drawing map = {.out = out, .a = a, .b = b};
    lay_out(&map);
    draw_head(&map, title);
    draw_cells(&map);
    draw_axes(&map);
    draw_legend(&map);
    fputs("</svg>\n", out);
}
