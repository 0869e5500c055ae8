/* SPDX-License-Identifier: BSD-3-Clause */
/* Intrusive doubly linked lists on struct bm_list. A node in no list has next == NULL. */
#ifndef BM_BASE_LIST_H
#define BM_BASE_LIST_H

#include "blockmirror/loop.h"

#define bm_container(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define bm_list_each(pos, head) \
	for (struct bm_list *pos = (head)->next; pos != (head); pos = pos->next)

/* As bm_list_each, and pos may leave its list in the body. */
#define bm_list_each_safe(pos, head)                                                     \
	for (struct bm_list *pos = (head)->next, *pos##_next = pos->next; pos != (head); \
	     pos = pos##_next, pos##_next = pos->next)

static inline void bm_list_init(struct bm_list *head)
{
	head->prev = head->next = head;
}

static inline bool bm_list_empty(const struct bm_list *head)
{
	return head->next == head;
}

static inline bool bm_list_linked(const struct bm_list *node)
{
	return node->next != NULL;
}

static inline void bm_list_append(struct bm_list *head, struct bm_list *node)
{
	node->prev = head->prev;
	node->next = head;
	head->prev->next = node;
	head->prev = node;
}

static inline void bm_list_push(struct bm_list *head, struct bm_list *node)
{
	bm_list_append(head->next, node);
}

static inline void bm_list_remove(struct bm_list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	node->prev = node->next = NULL;
}

/* Takes the first node out, or returns NULL. */
static inline struct bm_list *bm_list_take(struct bm_list *head)
{
	struct bm_list *node = head->next;

	if (node == head)
		return NULL;
	bm_list_remove(node);
	return node;
}

/* Moves all of from to the end of to; from is empty afterwards. */
static inline void bm_list_move_all(struct bm_list *to, struct bm_list *from)
{
	if (bm_list_empty(from))
		return;
	from->next->prev = to->prev;
	from->prev->next = to;
	to->prev->next = from->next;
	to->prev = from->prev;
	bm_list_init(from);
}

#endif
