/*
 * program.h - xmoe-server from its arguments to its exit status, apart from main so that tests can
 * run it in a child process of theirs.
 */
#ifndef XM_SERVER_PROGRAM_H
#define XM_SERVER_PROGRAM_H

int xm_program(int argc, char **argv);

#endif
