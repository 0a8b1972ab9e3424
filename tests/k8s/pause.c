/* The first process of a pod: handles SIGTERM, which the kernel withholds from a pid 1 that does not (every stop would
   wait out its grace period), and takes in the children that others leave behind. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void down(int signal) { _exit(0); }
static void take_in(int signal) { while (waitpid(-1, 0, WNOHANG) > 0); }

int main(void) {
    struct sigaction children = {.sa_handler = take_in, .sa_flags = SA_NOCLDSTOP};
    signal(SIGINT, down);
    signal(SIGTERM, down);
    sigaction(SIGCHLD, &children, 0);
    for (;;) pause();
}
