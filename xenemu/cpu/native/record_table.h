/* Included once for each record: the function that has the table of its struct. */
const struct member *RECORD_TABLE(void)
{
    typedef struct RECORD subject;
    static const struct member members[] = {
#define MEMBER(type, name, array)                                                                 \
    {#name, #type, offsetof(subject, name), sizeof(((subject *)0)->name) / sizeof(type)},
#include RECORD_FIELDS
        {NULL, NULL, sizeof(subject), 0}};
    return members;
}
#undef RECORD
#undef RECORD_TABLE
#undef RECORD_FIELDS
