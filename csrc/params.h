// A params struct from one list of its fields, which the binding reads by name as well.
#pragma once

// Defines `struct Name` with a member for each F(type, name) of `FIELDS(F)`, and
// Name::for_each_field(visit), which calls visit("name", &Name::name) for each of them.
#define RAGVL_PARAMS(Name, FIELDS)            \
  struct Name {                               \
    FIELDS(RAGVL_MEMBER)                      \
    using Self = Name;                        \
    template <class Visit>                    \
    static void for_each_field(Visit visit) { \
      FIELDS(RAGVL_VISIT)                     \
    }                                         \
  };
#define RAGVL_MEMBER(type, name) type name;
#define RAGVL_VISIT(type, name) visit(#name, &Self::name);
