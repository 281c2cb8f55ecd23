# xmoe: `make help` lists what can be made.
#
#   make SANITIZER=address    (or thread, undefined) builds into build/address/ with that sanitizer
#   make DEBUG=1              no optimisation, build/debug/
#   make V=1                  shows the commands

CC        ?= gcc
PREFIX    ?= /usr/local
SANITIZER ?=
VERSION   := 0.1.0

BUILD := build$(if $(SANITIZER),/$(SANITIZER))$(if $(DEBUG),/debug)

# -ffp-contract=off: a sum's order and rounding are what the source says, on every machine.
# Sanitizers at -O1: the kernels compile in half the time.
WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Werror=implicit-function-declaration
CFLAGS   ?= $(if $(DEBUG),-O0,$(if $(SANITIZER),-O1,-O2)) -g
ALL_CFLAGS = -std=c17 -D_GNU_SOURCE $(WARNINGS) -ffp-contract=off -fPIC -fvisibility=hidden \
             -Iinclude -Iengine -MMD -MP $(CFLAGS) \
             $(if $(SANITIZER),-fsanitize=$(SANITIZER:address=address,undefined) -fno-omit-frame-pointer)
LDFLAGS  += $(if $(SANITIZER),-fsanitize=$(SANITIZER:address=address,undefined))

Q   = $(if $(V),,@)
say = @$(if $(V),true,printf '  %-5s %s\n' $(1) $(2))

ENGINE_LIBS = $(shell pkg-config --libs libpcre2-8) -lpthread -lm
SERVER_LIBS = $(shell pkg-config --libs libmicrohttpd libcjson)
TRAIN_LIBS  = $(shell pkg-config --libs openblas)
TOOL_LIBS   = -Wl,--as-needed $(shell pkg-config --libs libcjson libcurl)

# --- sources -------------------------------------------------------------------------------------

# The engine without its training wing. Files *_simd.c are compiled once per instruction set.
SIMD_SOURCES   := $(filter-out engine/train/%,$(wildcard engine/*/*_simd.c))
ENGINE_SOURCES := $(filter-out engine/train/% $(SIMD_SOURCES),$(wildcard engine/*/*.c))
# ranks_mpi.c is the program's that runs under mpirun: made where there is an MPI.
TRAIN_SOURCES  := $(filter-out engine/train/ranks_mpi.c,$(wildcard engine/train/*.c))
SERVER_SOURCES := $(wildcard server/*.c)
TEST_SOURCES   := $(wildcard tests/test_*.c)
TEST_HELPERS   := $(filter-out $(TEST_SOURCES),$(wildcard tests/*.c))
TOOLS          := generate train quantize eval bench inspect usage
TOOL_HELPERS   := $(filter-out $(TOOLS:%=tools/%.c),$(wildcard tools/*.c))

objects = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

# uname where there is no compiler yet (make run and make test install one).
MACHINE := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine 2>/dev/null || uname -m)))
ifeq ($(MACHINE),x86_64)
SIMD_OBJECTS := $(patsubst %.c,$(BUILD)/obj/%.avx2.o,$(SIMD_SOURCES)) \
                $(patsubst %.c,$(BUILD)/obj/%.avx512.o,$(SIMD_SOURCES))
endif
AVX2_FLAGS   := -mavx2 -mfma -mf16c -DXM_ISA=avx2
AVX512_FLAGS := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c -DXM_ISA=avx512

# BF16 kernels of training; which CPU runs them is asked at run time (engine/train/gemm.c).
BF16_FLAGS := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16

ENGINE_OBJECTS := $(call objects,$(ENGINE_SOURCES)) $(SIMD_OBJECTS)
TRAIN_OBJECTS  := $(call objects,$(TRAIN_SOURCES))
SERVER_OBJECTS := $(call objects,$(SERVER_SOURCES))

MPI      := $(shell pkg-config --exists mpi-c && echo mpi-c)
PROGRAMS := $(BUILD)/xmoe-server $(TOOLS:%=$(BUILD)/xmoe-%) $(if $(MPI),$(BUILD)/xmoe-train-mpi)
LIBRARY  := $(BUILD)/libxmoe.a
SHARED   := $(BUILD)/libxmoe.so
TESTS    := $(TEST_SOURCES:tests/%.c=$(BUILD)/tests/%)

# --- targets -------------------------------------------------------------------------------------

.PHONY: all help run test check lint format bench coverage install clean deps deps-test FORCE
.DELETE_ON_ERROR:
.SECONDARY:

all: $(PROGRAMS) $(LIBRARY) $(SHARED) $(BUILD)/xmoe.pc

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

run: deps ## install what is missing, build, serve the bundled model on 127.0.0.1:8080
	@$(MAKE) --no-print-directory all
	$(BUILD)/xmoe-server

deps:
	@deploy/install-deps.sh build

deps-test:
	@deploy/install-deps.sh test

test: deps-test ## install what is missing, build, run the tests, also under sanitizers
	@$(MAKE) --no-print-directory -j2 all
	@tests/run.sh

check: $(TESTS) ## build and run the unit tests of this configuration only
	@set -e; for test in $(TESTS); do echo "== $$test"; $$test; done

lint: ## clang-format, clang-tidy and cppcheck over the tree
	@deploy/install-deps.sh lint
	clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h')
	cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr \
	    --suppress=missingIncludeSystem --error-exitcode=1 -Iinclude -Iengine engine server tools
	@# One file a call: over several, clang-tidy 14 sees uninitialised va_lists that are not there.
	git ls-files 'engine/*.c' 'server/*.c' 'tools/*.c' | grep -v _simd.c | xargs -P2 -I{} clang-tidy \
	    --quiet {} -- -std=c17 -D_GNU_SOURCE -Iinclude -Iengine $$(pkg-config --cflags libcjson libcurl openblas) \
	    $$(pkg-config --cflags mpi-c | sed 's/-I/-isystem/g')

format: ## clang-format the tree
	clang-format -i $$(git ls-files '*.c' '*.h')

bench: all ## speed of a 1 GB model beside the machine's rooflines
	$(BUILD)/xmoe-bench

coverage: deps-test ## line coverage of the unit tests, in build/coverage/
	$(MAKE) BUILD=build/coverage CFLAGS="-O0 -g --coverage" LDFLAGS=--coverage check
	@cd build/coverage && gcov -n $$(find obj/engine obj/server -name '*.o') 2>/dev/null \
	    | awk '/^File .*(engine|server)/{f=$$2} /^Lines executed/&&f{print $$2, $$4, f; f=""}' | sort -u

install: all ## library, header, pkg-config file and programs under PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include \
	    $(DESTDIR)$(PREFIX)/share/xmoe
	install -m 755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(LIBRARY) $(DESTDIR)$(PREFIX)/lib
	install -m 755 $(SHARED) $(DESTDIR)$(PREFIX)/lib/libxmoe.so.$(VERSION)
	ln -sf libxmoe.so.$(VERSION) $(DESTDIR)$(PREFIX)/lib/libxmoe.so.0
	ln -sf libxmoe.so.0 $(DESTDIR)$(PREFIX)/lib/libxmoe.so
	install -m 644 include/xmoe.h $(DESTDIR)$(PREFIX)/include
	install -m 644 $(BUILD)/xmoe.pc $(DESTDIR)$(PREFIX)/lib/pkgconfig
	install -m 644 models/*.gguf config/xmoe.json config/openapi.json $(DESTDIR)$(PREFIX)/share/xmoe

clean: ## remove build/
	rm -rf build

# --- rules ---------------------------------------------------------------------------------------

$(BUILD)/obj/%.avx2.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(AVX2_FLAGS) -c $< -o $@

$(BUILD)/obj/%.avx512.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(AVX512_FLAGS) -c $< -o $@

$(BUILD)/obj/server/%.o: server/%.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(shell pkg-config --cflags libmicrohttpd libcjson) -c $< -o $@

$(BUILD)/obj/server/openapi.o: config/openapi.json # embedded
$(BUILD)/obj/server/dashboard.o: $(wildcard server/dashboard/*.html server/dashboard/*.css server/dashboard/*.js)

$(BUILD)/obj/engine/train/ranks_mpi.o: engine/train/ranks_mpi.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(shell pkg-config --cflags mpi-c) -c $< -o $@

ifeq ($(MACHINE),x86_64)
$(BUILD)/obj/engine/train/gemm_bf16_simd.o: ALL_CFLAGS += $(BF16_FLAGS)
endif

$(BUILD)/obj/engine/train/%.o: engine/train/%.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(shell pkg-config --cflags openblas) -c $< -o $@

$(BUILD)/obj/tools/%.o: tools/%.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(shell pkg-config --cflags libcjson libcurl) -c $< -o $@

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(ALL_CFLAGS) -c $< -o $@

$(LIBRARY): $(ENGINE_OBJECTS)
	@rm -f $@
	$(call say,AR,$@)
	$(Q)ar rcs $@ $^

$(SHARED): $(ENGINE_OBJECTS)
	$(call say,LINK,$@)
	$(Q)$(CC) -shared -Wl,-soname,libxmoe.so.0 $(LDFLAGS) $^ -o $@ $(ENGINE_LIBS)

$(BUILD)/libxmoe-train.a: $(TRAIN_OBJECTS)
	@rm -f $@
	$(call say,AR,$@)
	$(Q)ar rcs $@ $^

$(BUILD)/libxmoe-server.a: $(filter-out %/server/main.o,$(SERVER_OBJECTS))
	@rm -f $@
	$(call say,AR,$@)
	$(Q)ar rcs $@ $^

$(BUILD)/xmoe-server: $(BUILD)/obj/server/main.o $(BUILD)/libxmoe-server.a $(LIBRARY)
	$(call say,LINK,$@)
	$(Q)$(CC) $(LDFLAGS) $^ -o $@ $(SERVER_LIBS) $(ENGINE_LIBS)

# What the tools share: of it, and of its libraries, each links what it needs.
$(BUILD)/libxmoe-tools.a: $(call objects,$(TOOL_HELPERS))
	@rm -f $@
	$(call say,AR,$@)
	$(Q)ar rcs $@ $^

$(BUILD)/xmoe-train: $(BUILD)/obj/tools/train.o $(BUILD)/libxmoe-tools.a $(BUILD)/libxmoe-train.a $(LIBRARY)
	$(call say,LINK,$@)
	$(Q)$(CC) $(LDFLAGS) $^ -o $@ $(TRAIN_LIBS) $(ENGINE_LIBS)

# The same with ranks_mpi.o before the library, whose ranks_alone.o is then not asked for.
$(BUILD)/xmoe-train-mpi: $(BUILD)/obj/tools/train.o $(BUILD)/obj/engine/train/ranks_mpi.o \
    $(BUILD)/libxmoe-tools.a $(BUILD)/libxmoe-train.a $(LIBRARY)
	$(call say,LINK,$@)
	$(Q)$(CC) $(LDFLAGS) $^ -o $@ $(TRAIN_LIBS) $(shell pkg-config --libs mpi-c) $(ENGINE_LIBS)

$(BUILD)/xmoe-%: $(BUILD)/obj/tools/%.o $(BUILD)/libxmoe-tools.a $(LIBRARY)
	$(call say,LINK,$@)
	$(Q)$(CC) $(LDFLAGS) $^ -o $@ $(TOOL_LIBS) $(ENGINE_LIBS)

$(BUILD)/xmoe.pc: FORCE # PREFIX may be another than before
	@mkdir -p $(@D)
	@printf 'prefix=%s\nlibdir=$${prefix}/lib\nincludedir=$${prefix}/include\n\nName: xmoe\nDescription: inference engine for sparse mixture-of-experts language models\nVersion: %s\nRequires.private: libpcre2-8\nLibs: -L$${libdir} -lxmoe\nLibs.private: -lpthread -lm\nCflags: -I$${includedir}\n' \
	    '$(PREFIX)' '$(VERSION)' > $@

$(BUILD)/libxmoe-tests.a: $(call objects,$(TEST_HELPERS))
	@rm -f $@
	$(call say,AR,$@)
	$(Q)ar rcs $@ $^

# Tests see the floors' own headers; those over training, the server and the tools link these too.
$(BUILD)/tests/test_%: $(BUILD)/obj/tests/test_%.o $(BUILD)/libxmoe-tests.a \
    $(BUILD)/libxmoe-train.a $(BUILD)/libxmoe-server.a $(BUILD)/libxmoe-tools.a $(LIBRARY)
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) $(LDFLAGS) $^ -o $@ $(TRAIN_LIBS) $(SERVER_LIBS) $(shell pkg-config --libs cmocka) $(ENGINE_LIBS)

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
