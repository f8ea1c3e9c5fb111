/* Resolves names with the C library that it is linked to: "resolve NAME..." prints one line for each name,
 * "NAME ADDRESS ADDRESS..." or "NAME failed: REASON". */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int count, char **names) {
	for (int i = 1; i < count; i++) {
		struct addrinfo hints, *list = 0;
		memset(&hints, 0, sizeof hints);
		hints.ai_socktype = SOCK_STREAM;
		int error = getaddrinfo(names[i], 0, &hints, &list);
		printf("%s", names[i]);
		if (error)
			printf(" failed: %s", gai_strerror(error));
		for (struct addrinfo *at = list; at; at = at->ai_next) {
			char text[INET6_ADDRSTRLEN] = "?";
			const void *address = at->ai_family == AF_INET
				? (void *)&((struct sockaddr_in *)at->ai_addr)->sin_addr
				: (void *)&((struct sockaddr_in6 *)at->ai_addr)->sin6_addr;
			inet_ntop(at->ai_family, address, text, sizeof text);
			printf(" %s", text);
		}
		printf("\n");
		if (list)
			freeaddrinfo(list);
	}
	return 0;
}
