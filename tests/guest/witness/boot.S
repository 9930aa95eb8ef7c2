// Entry from the multiboot loader (32-bit protected mode, interrupts off), descriptor tables, interrupt stubs.
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 2 /* give us the memory map */
#define VECTORS 48        /* 32 exceptions, 16 interrupts of the PICs */
#define TIMER_VECTOR 32

    .section .multiboot, "a"
    .align 4
    .long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

    .text
    .global start
start:
    mov $stack_end, %esp
    // The loader's GDT may be gone by now; interrupts reload CS from ours.
    lgdt gdt_pointer
    ljmp $0x08, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss

    // All gates, then the timer's. Gate: offset low, selector, 0x8e00 (32-bit interrupt gate), offset high.
    mov $idt, %edi
    xor %ecx, %ecx
2:  mov $exception_entry, %eax
    cmp $TIMER_VECTOR, %ecx
    jb 3f
    mov $timer_entry, %eax
    je 3f
    mov $spurious_entry, %eax
3:  mov %ax, (%edi)
    movw $0x08, 2(%edi)
    movw $0x8e00, 4(%edi)
    shr $16, %eax
    mov %ax, 6(%edi)
    add $8, %edi
    inc %ecx
    cmp $VECTORS, %ecx
    jb 2b
    lidt idt_pointer

    push %ebx // multiboot information
    call guest_main

timer_entry:
    push %eax
    incl tick_count
    mov $0x20, %al // end of interrupt
    out %al, $0x20
    pop %eax
spurious_entry:
    iret

exception_entry:
    // Exceptions without an error code have EIP on top; with one, the code comes first. Both are worth printing.
    pushl 4(%esp)
    pushl 4(%esp)
    call guest_exception

    .section .rodata
    .align 8
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff
    .quad 0x00cf92000000ffff
gdt_pointer:
    .word . - gdt - 1
    .long gdt
idt_pointer:
    .word VECTORS * 8 - 1
    .long idt

    .bss
    .align 4096
stack:
    .skip 8192
stack_end:
idt:
    .skip VECTORS * 8

    .section .note.GNU-stack, "", @progbits
