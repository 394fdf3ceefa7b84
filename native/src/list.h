/* Doubly linked lists of numbers: each number is in at most one list of those that share an array of links. */
#ifndef HSM_LIST_H
#define HSM_LIST_H

#include "base.h"

#define HSM_NONE UINT32_MAX

typedef struct hsm_link {
    uint32_t next, previous;
} hsm_link;

typedef struct hsm_list {
    uint32_t first, last, count;
} hsm_list;

static inline void hsm_list_begin(hsm_list *list) {
    *list = (hsm_list){HSM_NONE, HSM_NONE, 0};
}

/* Put a number at the end of a list, or with `front` at its beginning. */
static inline void hsm_list_push(hsm_link *links, hsm_list *list, uint32_t number, bool front) {
    hsm_link *link = &links[number];
    link->next = front ? list->first : HSM_NONE;
    link->previous = front ? HSM_NONE : list->last;
    *(link->next != HSM_NONE ? &links[link->next].previous : &list->last) = number;
    *(link->previous != HSM_NONE ? &links[link->previous].next : &list->first) = number;
    list->count++;
}

static inline void hsm_list_drop(hsm_link *links, hsm_list *list, uint32_t number) {
    hsm_link link = links[number];
    *(link.next != HSM_NONE ? &links[link.next].previous : &list->last) = link.previous;
    *(link.previous != HSM_NONE ? &links[link.previous].next : &list->first) = link.next;
    list->count--;
}

/* Take the first number out of a list that has one. */
static inline uint32_t hsm_list_pop(hsm_link *links, hsm_list *list) {
    uint32_t first = list->first;
    list->first = links[first].next;
    *(list->first != HSM_NONE ? &links[list->first].previous : &list->last) = HSM_NONE;
    list->count--;
    return first;
}

#endif
