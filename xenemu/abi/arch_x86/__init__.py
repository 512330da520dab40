"""Header: public/arch-x86/"""
