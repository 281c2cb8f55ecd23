/*
 * main.c - xmoe-server.
 */
#include "program.h"

int main(int argc, char **argv)
{
    return xm_program(argc, argv);
}
